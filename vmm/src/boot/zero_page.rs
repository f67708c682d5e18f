//! The zero page: what Linux is told about the machine
//! (`Documentation/arch/x86/zero-page.rst`), and the random numbers that it
//! begins with.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::BootError;
use super::initrd::Initrd;
use crate::memory::{GuestMemory, layout};

/// `boot_flag`, the last bytes of a boot sector.
const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS", the magic number of the boot protocol.
const HEADER_MAGIC: u32 = 0x5372_6448;
/// A boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// What a relocatable kernel would have to be aligned to; a vmlinux is loaded
/// where it was linked.
const KERNEL_ALIGNMENT: u32 = 0x20_0000;

const E820_RAM: u32 = 1;

/// `SETUP_RNG_SEED` of `setup_data`.
const SETUP_RNG_SEED: u32 = 9;
/// As many as Linux's generator wants before it calls itself initialized.
const SEED_SIZE: usize = 32;

/// Puts the zero page into guest memory.
pub(super) fn write(
    memory: &GuestMemory,
    cmdline_length: u32,
    initrd: Option<Initrd>,
) -> Result<(), BootError> {
    let mut params = build(memory, cmdline_length, initrd);
    if let Some(seed) = seed() {
        memory
            .write_slice(&seed, GuestAddress(layout::RANDOM_SEED))
            .map_err(|source| BootError::Memory {
                what: "random seed",
                source,
            })?;
        params.hdr.setup_data = layout::RANDOM_SEED;
    }
    memory
        .write_obj(params, GuestAddress(layout::ZERO_PAGE))
        .map_err(|source| BootError::Memory {
            what: "zero page",
            source,
        })
}

/// A `setup_data` of random numbers, which Linux takes for its own before it needs
/// any, and wipes. Until it has them it makes do with each that it is asked for by
/// hashing all that it knows. None where the host has none to give.
fn seed() -> Option<[u8; layout::RANDOM_SEED_SIZE as usize]> {
    let mut data = [0; layout::RANDOM_SEED_SIZE as usize];
    // After the address of the next one, of which there is none.
    data[8..12].copy_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    data[12..16].copy_from_slice(&(SEED_SIZE as u32).to_le_bytes());
    // So few come whole (getrandom(2)).
    let got = getrandom(&mut data[16..], GetRandomFlags::empty()).ok()?;
    (got == SEED_SIZE).then_some(data)
}

fn build(memory: &GuestMemory, cmdline_length: u32, initrd: Option<Initrd>) -> boot_params {
    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = cmdline_length;
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = initrd.address;
        params.hdr.ramdisk_size = initrd.size;
    }
    let mut entries = 0;
    let mut add = |start: u64, end: u64| {
        if end > start {
            params.e820_table[entries] = boot_e820_entry {
                addr: start,
                size: end - start,
                r#type: E820_RAM,
            };
            entries += 1;
        }
    };
    add(layout::CONVENTIONAL_MEMORY, layout::EBDA);
    for region in memory.iter() {
        let start = region.start_addr().0;
        add(start.max(layout::HIGH_MEMORY), start + region.len());
    }
    params.e820_entries = entries as u8;
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(size: u64) -> Vec<(u64, u64)> {
        // Only reserved, never touched.
        let memory = GuestMemory::from_ranges(&layout::ram_ranges(size)).unwrap();
        let params = build(&memory, 0, None);
        params.e820_table[..params.e820_entries as usize]
            .iter()
            .map(|entry| {
                assert_eq!({ entry.r#type }, E820_RAM);
                (entry.addr, entry.addr + entry.size)
            })
            .collect()
    }

    #[test]
    fn memory_map_leaves_out_the_first_page_and_the_hole_below_one_mib() {
        assert_eq!(map(128 << 20), [(0x1000, 0x9_fc00), (0x10_0000, 128 << 20)]);
    }

    #[test]
    fn memory_map_leaves_out_the_devices() {
        assert_eq!(
            map(8 << 30),
            [
                (0x1000, 0x9_fc00),
                (0x10_0000, 0xd000_0000),
                (0x1_0000_0000, 0x1_0000_0000 + (8 << 30) - 0xd000_0000)
            ]
        );
    }

    #[test]
    fn header_says_where_things_are() {
        let memory = GuestMemory::from_ranges(&layout::ram_ranges(16 << 20)).unwrap();
        let initrd = Initrd {
            address: 0x80_0000,
            size: 0x1234,
        };
        write(&memory, 17, Some(initrd)).unwrap();
        let params: boot_params = memory.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
        assert_eq!({ params.hdr.header }, HEADER_MAGIC);
        assert_eq!({ params.hdr.cmd_line_ptr }, 0x8000);
        assert_eq!({ params.hdr.cmdline_size }, 17);
        assert_eq!({ params.hdr.ramdisk_image }, 0x80_0000);
        assert_eq!({ params.hdr.ramdisk_size }, 0x1234);
        assert_eq!({ params.hdr.setup_data }, layout::RANDOM_SEED);
    }

    #[test]
    fn every_kernel_begins_with_numbers_of_its_own() {
        let (one, other) = (seed().unwrap(), seed().unwrap());
        assert_eq!(one[..8], [0; 8]);
        assert_eq!(one[8..16], [9, 0, 0, 0, 32, 0, 0, 0]);
        assert_ne!(one[16..], other[16..]);
    }
}

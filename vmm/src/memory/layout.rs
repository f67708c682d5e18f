//! The guest-physical address map, every constant of it.
//!
//! | from | to | what |
//! | --- | --- | --- |
//! | `0x0` | `0x1000` | not in the memory map: Linux keeps off the first page anyway, and would split an entry for it |
//! | `0x0` | `0x400` | in it: MP floating pointer and table, where Linux looks first |
//! | `0x500` | `0x530` | in it: GDT, then IDT, of the boot processor's first instructions |
//! | `0x7000` | `0x8000` | zero page (`boot_params`) |
//! | `0x8000` | `0x8800` | kernel command line |
//! | `0x9000` | `0xc000` | page tables: the first GiB, one to one |
//! | `0x9_fc00` | `0x10_0000` | not in the memory map (EBDA, video memory, BIOS) |
//! | `0x9_fc00` | `0x9_fc30` | in it: random numbers that the kernel begins with |
//! | `0x10_0000` | end of low memory | kernel; the initramfs below the last large page |
//! | `0xd000_0000` | `0x1_0000_0000` | devices: virtio-mmio, IOAPIC, local APIC, KVM's own pages |
//! | `0x1_0000_0000` | | memory that did not fit below the devices |

use vm_memory::GuestAddress;

/// MP floating pointer structure; the configuration table follows it. The
/// first of the places where Linux searches.
pub const MP_TABLE: u64 = 0x0;
/// Bytes that floating pointer and table may take.
pub const MP_TABLE_MAX: u64 = 0x400;

/// Global descriptor table.
pub const GDT: u64 = 0x500;
/// Interrupt descriptor table: one null entry, until the kernel loads its own.
pub const IDT: u64 = 0x520;

/// Start of conventional memory.
pub const CONVENTIONAL_MEMORY: u64 = 0x1000;

/// `boot_params`, which the 64-bit boot protocol passes in RSI.
pub const ZERO_PAGE: u64 = 0x7000;

/// Kernel command line.
pub const CMDLINE: u64 = 0x8000;
/// Bytes for the command line with its final NUL: Linux's `COMMAND_LINE_SIZE` on x86.
pub const CMDLINE_MAX: u64 = 0x800;

/// Top level of the boot page tables; the two lower levels follow.
pub const PML4: u64 = 0x9000;
/// Second level.
pub const PDPT: u64 = 0xa000;
/// Third level: 512 pages of 2 MiB.
pub const PAGE_DIRECTORY: u64 = 0xb000;

/// End of conventional memory.
pub const EBDA: u64 = 0x9_fc00;
/// `setup_data` with random numbers. Where there is memory that the memory map does
/// not have: of an entry that it lay in, Linux would make three, and it asks each entry
/// thousands of times while it maps memory.
pub const RANDOM_SEED: u64 = EBDA;
/// Bytes of it: a header and the numbers.
pub const RANDOM_SEED_SIZE: u64 = 0x30;
/// Start of the memory that a kernel may be loaded into.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// Start of the range that is left to devices.
pub const DEVICES: u64 = 0xd000_0000;
/// End of the device range, where the second part of a large memory starts.
pub const DEVICES_END: u64 = 0x1_0000_0000;

/// First virtio-mmio window.
pub const VIRTIO_MMIO: u64 = DEVICES;
/// Size of a virtio-mmio window; the next one follows.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// Interrupt line of the first virtio-mmio device; the next one follows.
pub const VIRTIO_GSI: u32 = 5;
/// Last interrupt line of the IOAPIC.
pub const LAST_GSI: u32 = 23;

/// IOAPIC registers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs on Intel processors without unrestricted guest.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// Where `size` bytes of guest memory lie: one range, or two around the devices.
pub fn ram_ranges(size: u64) -> Vec<(GuestAddress, usize)> {
    let low = size.min(DEVICES);
    let mut ranges = vec![(GuestAddress(0), low as usize)];
    if size > low {
        ranges.push((GuestAddress(DEVICES_END), (size - low) as usize));
    }
    ranges
}

// The areas of low memory are in order and do not overlap.
const _: () = {
    assert!(MP_TABLE + MP_TABLE_MAX <= GDT);
    assert!(GDT + 4 * 8 <= IDT && IDT + 8 <= CONVENTIONAL_MEMORY);
    assert!(CONVENTIONAL_MEMORY <= ZERO_PAGE && ZERO_PAGE + 0x1000 <= CMDLINE);
    assert!(CMDLINE + CMDLINE_MAX <= PML4);
    assert!(PML4 + 0x1000 == PDPT && PDPT + 0x1000 == PAGE_DIRECTORY);
    assert!(PAGE_DIRECTORY + 0x1000 <= EBDA && EBDA <= RANDOM_SEED);
    assert!(RANDOM_SEED + RANDOM_SEED_SIZE <= HIGH_MEMORY && HIGH_MEMORY < DEVICES);
    assert!(VIRTIO_MMIO + VIRTIO_MMIO_SIZE * 19 <= IOAPIC as u64);
    assert!((IOAPIC as u64) < (LOCAL_APIC as u64) && (LOCAL_APIC as u64) < KVM_TSS);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_memory_is_one_range() {
        assert_eq!(ram_ranges(128 << 20), [(GuestAddress(0), 128 << 20)]);
        assert_eq!(ram_ranges(DEVICES), [(GuestAddress(0), DEVICES as usize)]);
    }

    #[test]
    fn large_memory_goes_around_the_devices() {
        let ranges = ram_ranges(8 << 30);
        assert_eq!(ranges[0], (GuestAddress(0), DEVICES as usize));
        assert_eq!(ranges[1].0, GuestAddress(DEVICES_END));
        assert_eq!(ranges.iter().map(|range| range.1).sum::<usize>(), 8 << 30);
    }
}

//! Descriptor and page tables with which a processor is in long mode from its
//! first instruction (Intel SDM volume 3, 3.4.5 and 4.5).

use kvm_bindings::{kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::memory::{GuestMemory, layout};

const CR0_PROTECTED: u64 = 1 << 0;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;

/// Selector of the code segment, which the boot protocol calls `__BOOT_CS`.
const CODE_SELECTOR: u16 = 0x10;
/// Selector of the data segment, `__BOOT_DS`.
const DATA_SELECTOR: u16 = 0x18;

/// Descriptors: null, unused, 64-bit code (execute/read), flat data (read/write).
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

const PRESENT_WRITABLE: u64 = 0b11;
const PAGE_SIZE_2M: u64 = 1 << 7;

/// Number of bytes of the GDT, less one, as in GDTR.
pub const GDT_LIMIT: u16 = size_of_val(&GDT) as u16 - 1;
/// Number of bytes of the IDT, less one, as in IDTR.
pub const IDT_LIMIT: u16 = size_of::<u64>() as u16 - 1;

/// The 64-bit code segment.
pub fn code_segment() -> kvm_segment {
    // Type 11: execute/read, accessed.
    kvm_segment {
        selector: CODE_SELECTOR,
        type_: 11,
        l: 1,
        ..flat_segment()
    }
}

/// The data segment.
pub fn data_segment() -> kvm_segment {
    // Type 3: read/write, accessed.
    kvm_segment {
        selector: DATA_SELECTOR,
        type_: 3,
        db: 1,
        ..flat_segment()
    }
}

/// The task segment, which a processor in long mode must have: type 11, busy.
pub fn task_segment() -> kvm_segment {
    kvm_segment {
        type_: 11,
        present: 1,
        limit: 0xffff,
        ..kvm_segment::default()
    }
}

/// Puts system registers into long mode with flat supervisor segments and the
/// page tables at `pml4`. Descriptor tables are the caller's.
pub fn enable(sregs: &mut kvm_sregs, pml4: u64) {
    let data = data_segment();
    sregs.cs = code_segment();
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task_segment();
    sregs.cr3 = pml4;
    sregs.cr4 |= CR4_PHYSICAL_ADDRESS_EXTENSION;
    sregs.cr0 |= CR0_PROTECTED | CR0_EXTENSION_TYPE | CR0_PAGING;
    sregs.efer |= EFER_LONG_MODE | EFER_LONG_MODE_ACTIVE;
}

fn flat_segment() -> kvm_segment {
    kvm_segment {
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}

/// Puts GDT, IDT and page tables into guest memory. The page tables map the
/// first GiB one to one by pages of 2 MiB.
pub(crate) fn write(memory: &GuestMemory) -> Result<(), BootError> {
    let wrong = |source| BootError::Memory {
        what: "descriptor or page table",
        source,
    };
    let mut page_directory = [0u8; 0x1000];
    for (index, entry) in (0u64..).zip(page_directory.chunks_exact_mut(8)) {
        entry.copy_from_slice(&((index << 21) | PRESENT_WRITABLE | PAGE_SIZE_2M).to_le_bytes());
    }
    let mut gdt = [0u8; size_of_val(&GDT)];
    for (bytes, descriptor) in gdt.chunks_exact_mut(8).zip(GDT) {
        bytes.copy_from_slice(&descriptor.to_le_bytes());
    }
    memory
        .write_slice(&gdt, GuestAddress(layout::GDT))
        .and_then(|()| memory.write_obj(0u64, GuestAddress(layout::IDT)))
        .and_then(|()| {
            memory.write_obj(layout::PDPT | PRESENT_WRITABLE, GuestAddress(layout::PML4))
        })
        .and_then(|()| {
            memory.write_obj(
                layout::PAGE_DIRECTORY | PRESENT_WRITABLE,
                GuestAddress(layout::PDPT),
            )
        })
        .and_then(|()| memory.write_slice(&page_directory, GuestAddress(layout::PAGE_DIRECTORY)))
        .map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_map_the_first_gib() {
        let memory = GuestMemory::from_ranges(&layout::ram_ranges(16 << 20)).unwrap();
        write(&memory).unwrap();
        let read = |address| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
        assert_eq!(read(layout::PML4), 0xa003);
        assert_eq!(read(layout::PDPT), 0xb003);
        assert_eq!(read(layout::PAGE_DIRECTORY), 0x83);
        assert_eq!(read(layout::PAGE_DIRECTORY + 511 * 8), 0x3fe0_0083);
        assert_eq!(read(layout::GDT + 0x10), 0x00af_9b00_0000_ffff);
    }

    #[test]
    fn too_little_memory_is_an_error() {
        let memory = GuestMemory::from_ranges(&layout::ram_ranges(0x9000)).unwrap();
        assert!(matches!(write(&memory), Err(BootError::Memory { .. })));
    }
}

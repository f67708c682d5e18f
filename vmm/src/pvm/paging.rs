//! Guest-virtual to guest-physical addresses by the guest's page tables, as a
//! processor in long mode does it (Intel SDM volume 3, 4.5; AMD APM volume 2,
//! 5.3): four or five levels, pages of 4 KiB, 2 MiB and 1 GiB.

use std::sync::atomic::Ordering;

use kvm_bindings::kvm_sregs;
use vm_memory::{Bytes, GuestAddress};

use super::atomic;
use crate::memory::GuestMemory;

const CR0_WRITE_PROTECT: u64 = 1 << 16;
const CR0_PAGING: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
const EFER_NO_EXECUTE: u64 = 1 << 11;
/// RFLAGS.AC, which lifts SMAP.
const RFLAGS_AC: u64 = 1 << 18;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Bits 12 to 51.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Bits of a page fault's error code.
const FAULT_PRESENT: u32 = 1 << 0;
const FAULT_WRITE: u32 = 1 << 1;
const FAULT_USER: u32 = 1 << 2;
const FAULT_FETCH: u32 = 1 << 4;

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// It reads data.
    Read,
    /// It writes data, or reads and writes it.
    Write,
    /// It fetches an instruction.
    Fetch,
}

/// Why an access does not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WalkError {
    /// The address has bits that no page table translates.
    NotCanonical,
    /// A page fault with this error code.
    PageFault(u32),
    /// A page table, or the page, lies where there is no memory.
    NoMemory,
    /// The processor is not in long mode.
    NotLongMode,
}

/// The guest's page tables, as one processor sees them.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageTables<'a> {
    memory: &'a GuestMemory,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    is_user: bool,
    lifts_smap: bool,
}

impl<'a> PageTables<'a> {
    /// Those of a processor with these registers, at its privilege level.
    pub(super) fn new(memory: &'a GuestMemory, sregs: &kvm_sregs, rflags: u64) -> Self {
        Self {
            memory,
            cr0: sregs.cr0,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
            is_user: sregs.ss.dpl == 3,
            lifts_smap: rflags & RFLAGS_AC != 0,
        }
    }

    /// The same tables for what the processor does as the supervisor.
    pub(super) fn as_supervisor(self) -> Self {
        Self {
            is_user: false,
            ..self
        }
    }

    /// Where `address` lies in guest-physical memory. What the page tables say
    /// about accesses is heeded, and noted in them as a processor would.
    pub(super) fn translate(
        &self,
        address: u64,
        access: Access,
    ) -> Result<GuestAddress, WalkError> {
        if self.cr0 & CR0_PAGING == 0 || self.efer & EFER_LONG_MODE_ACTIVE == 0 {
            return Err(WalkError::NotLongMode);
        }
        let levels = if self.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
        if !is_canonical(address, levels) {
            return Err(WalkError::NotCanonical);
        }
        let mut table = self.cr3 & ADDRESS;
        // What all levels grant together.
        let mut granted = WRITABLE | USER;
        let mut executable = true;
        for level in (0..levels).rev() {
            let shift = 12 + 9 * level;
            let place = GuestAddress(table + (address >> shift & 0x1ff) * 8);
            let entry: u64 = self
                .memory
                .load(place, Ordering::Relaxed)
                .map_err(|_| WalkError::NoMemory)?;
            if entry & PRESENT == 0 {
                return Err(self.fault(0, access));
            }
            if entry & NO_EXECUTE != 0 {
                if self.efer & EFER_NO_EXECUTE == 0 {
                    return Err(WalkError::NoMemory);
                }
                executable = false;
            }
            granted &= entry;
            let is_leaf = level == 0 || (level <= 2 && entry & LARGE != 0);
            if !is_leaf {
                self.mark(place, entry, ACCESSED)?;
                table = entry & ADDRESS;
                continue;
            }
            if !self.permits(granted, executable, access) {
                return Err(self.fault(FAULT_PRESENT, access));
            }
            let marks = if access == Access::Write {
                ACCESSED | DIRTY
            } else {
                ACCESSED
            };
            self.mark(place, entry, marks)?;
            let offset_mask = (1u64 << shift) - 1;
            return Ok(GuestAddress(
                (entry & ADDRESS & !offset_mask) | (address & offset_mask),
            ));
        }
        Err(WalkError::NoMemory)
    }

    fn permits(&self, granted: u64, executable: bool, access: Access) -> bool {
        let is_user_page = granted & USER != 0;
        let is_writable = granted & WRITABLE != 0;
        if self.is_user && !is_user_page {
            return false;
        }
        match access {
            Access::Fetch => {
                executable && (self.is_user || !is_user_page || self.cr4 & CR4_SMEP == 0)
            }
            Access::Read | Access::Write => {
                let smap =
                    !self.is_user && is_user_page && self.cr4 & CR4_SMAP != 0 && !self.lifts_smap;
                let read_only = !is_writable && (self.is_user || self.cr0 & CR0_WRITE_PROTECT != 0);
                !(smap || access == Access::Write && read_only)
            }
        }
    }

    fn fault(&self, present: u32, access: Access) -> WalkError {
        let mut code = present;
        if self.is_user {
            code |= FAULT_USER;
        }
        match access {
            Access::Read => {}
            Access::Write => code |= FAULT_WRITE,
            Access::Fetch => {
                if self.efer & EFER_NO_EXECUTE != 0 || self.cr4 & CR4_SMEP != 0 {
                    code |= FAULT_FETCH;
                }
            }
        }
        WalkError::PageFault(code)
    }

    /// Sets bits of an entry. One that another processor has changed since it
    /// was read is left to it: the mark would belong to the old one.
    fn mark(&self, place: GuestAddress, entry: u64, marks: u64) -> Result<(), WalkError> {
        if entry & marks == marks {
            return Ok(());
        }
        atomic::compare_exchange_8(self.memory, place, entry, entry | marks)
            .ok_or(WalkError::NoMemory)
            .map(|_| ())
    }

    /// Where the `length` bytes at `address` lie, page by page; or why one of
    /// these pages cannot be accessed, and its first byte that was wanted.
    pub(super) fn span(
        &self,
        address: u64,
        length: usize,
        access: Access,
    ) -> Result<Vec<(GuestAddress, usize)>, (WalkError, u64)> {
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < length {
            let at = address.wrapping_add(done as u64);
            let page_left = 0x1000 - (at & 0xfff) as usize;
            let count = page_left.min(length - done);
            let place = self.translate(at, access).map_err(|error| (error, at))?;
            pieces.push((place, count));
            done += count;
        }
        Ok(pieces)
    }

    /// Reads `bytes` at `address`, which may cross pages.
    pub(super) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), WalkError> {
        let mut address = address;
        let mut rest = bytes;
        while !rest.is_empty() {
            let page_left = 0x1000 - (address & 0xfff) as usize;
            let count = page_left.min(rest.len());
            let (part, behind) = rest.split_at_mut(count);
            let place = self.translate(address, Access::Read)?;
            self.memory
                .read_slice(part, place)
                .map_err(|_| WalkError::NoMemory)?;
            address = address.wrapping_add(count as u64);
            rest = behind;
        }
        Ok(())
    }

    /// Reads instruction bytes, as many as can be fetched.
    pub(super) fn fetch(&self, address: u64, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            let at = address.wrapping_add(done as u64);
            let page_left = 0x1000 - (at & 0xfff) as usize;
            let count = page_left.min(bytes.len() - done);
            let part = &mut bytes[done..done + count];
            let fetched = self
                .translate(at, Access::Fetch)
                .is_ok_and(|place| self.memory.read_slice(part, place).is_ok());
            if !fetched {
                break;
            }
            done += count;
        }
        done
    }
}

fn is_canonical(address: u64, levels: u32) -> bool {
    let unused = 64 - (12 + 9 * levels);
    ((address << unused) as i64 >> unused) as u64 == address
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::layout;

    const ROOT: u64 = 0x1000;
    const TOP: u64 = 0xffff_8000_0000_0000;

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&layout::ram_ranges(16 << 20)).unwrap()
    }

    fn put(memory: &GuestMemory, place: u64, entry: u64) {
        memory.write_obj(entry, GuestAddress(place)).unwrap();
    }

    fn sregs() -> kvm_sregs {
        kvm_sregs {
            cr0: CR0_PAGING | CR0_WRITE_PROTECT | 1,
            cr3: ROOT,
            cr4: 1 << 5,
            efer: EFER_LONG_MODE_ACTIVE | EFER_NO_EXECUTE,
            ..kvm_sregs::default()
        }
    }

    /// Maps TOP to 0x5000 by four levels; returns the place of the last entry.
    fn mapped(memory: &GuestMemory, leaf: u64) -> u64 {
        put(memory, ROOT + 256 * 8, 0x2000 | PRESENT | WRITABLE | USER);
        put(memory, 0x2000, 0x3000 | PRESENT | WRITABLE | USER);
        put(memory, 0x3000, 0x4000 | PRESENT | WRITABLE | USER);
        put(memory, 0x4000, 0x5000 | leaf);
        0x4000
    }

    #[test]
    fn pages_of_every_size_are_found() {
        let memory = memory();
        let leaf = mapped(&memory, PRESENT | WRITABLE);
        put(&memory, 0x3008, 0x20_0000 | PRESENT | WRITABLE | LARGE);
        put(&memory, 0x2008, 0x4000_0000 | PRESENT | LARGE);
        let sregs = sregs();
        let tables = PageTables::new(&memory, &sregs, 0);
        let at = |address| tables.translate(address, Access::Read).unwrap().0;
        assert_eq!(at(TOP + 0x123), 0x5123);
        assert_eq!(at(TOP + 0x20_1234), 0x20_1234);
        assert_eq!(at(TOP + 0x4765_4321), 0x4765_4321);
        let entry: u64 = memory.read_obj(GuestAddress(leaf)).unwrap();
        assert_eq!(entry & (ACCESSED | DIRTY), ACCESSED);
        tables.translate(TOP, Access::Write).unwrap();
        let entry: u64 = memory.read_obj(GuestAddress(leaf)).unwrap();
        assert_eq!(entry & (ACCESSED | DIRTY), ACCESSED | DIRTY);
    }

    #[test]
    fn five_levels_are_walked_where_they_are_on() {
        let memory = memory();
        mapped(&memory, PRESENT);
        put(&memory, 0x9000, ROOT | PRESENT | WRITABLE);
        let mut sregs = sregs();
        sregs.cr3 = 0x9000;
        sregs.cr4 |= CR4_LA57;
        let tables = PageTables::new(&memory, &sregs, 0);
        // Level 5 entry 0, level 4 entry 256: canonical with 57 bits only.
        let found = tables.translate(0x8000_0000_0042, Access::Read);
        assert_eq!(found, Ok(GuestAddress(0x5042)));
    }

    #[test]
    fn what_the_tables_forbid_faults_with_the_processors_code() {
        let memory = memory();
        mapped(&memory, PRESENT | NO_EXECUTE);
        let mut sregs = sregs();
        let fault = |sregs: &kvm_sregs, address, access| {
            PageTables::new(&memory, sregs, 0)
                .translate(address, access)
                .unwrap_err()
        };
        use WalkError::PageFault;
        assert_eq!(fault(&sregs, TOP, Access::Write), PageFault(0b11));
        assert_eq!(fault(&sregs, TOP, Access::Fetch), PageFault(0x11));
        assert_eq!(fault(&sregs, TOP + 0x1000, Access::Read), PageFault(0));
        assert_eq!(
            fault(&sregs, 1 << 48, Access::Read),
            WalkError::NotCanonical
        );
        sregs.ss.dpl = 3;
        assert_eq!(fault(&sregs, TOP, Access::Read), PageFault(0b101));
        sregs.ss.dpl = 0;
        sregs.cr0 &= !CR0_WRITE_PROTECT;
        let tables = PageTables::new(&memory, &sregs, 0);
        assert!(tables.translate(TOP, Access::Write).is_ok());
        sregs.cr3 = 1 << 40;
        assert_eq!(fault(&sregs, TOP, Access::Read), WalkError::NoMemory);
        sregs.efer = 0;
        assert_eq!(fault(&sregs, TOP, Access::Read), WalkError::NotLongMode);
    }

    #[test]
    fn user_pages_are_kept_from_the_supervisor_as_it_wishes() {
        let memory = memory();
        mapped(&memory, PRESENT | WRITABLE | USER);
        let mut sregs = sregs();
        sregs.cr4 |= CR4_SMAP | CR4_SMEP;
        let tables = PageTables::new(&memory, &sregs, 0);
        assert_eq!(
            tables.translate(TOP, Access::Read),
            Err(WalkError::PageFault(1))
        );
        assert_eq!(
            tables.translate(TOP, Access::Fetch),
            Err(WalkError::PageFault(0x11))
        );
        let lifted = PageTables::new(&memory, &sregs, RFLAGS_AC);
        assert!(lifted.translate(TOP, Access::Read).is_ok());
    }

    proptest! {
        #[test]
        fn hostile_tables_never_lead_out_of_memory(
            entries in prop::collection::vec(any::<u64>(), 64),
            cr3: u64, address: u64, user: bool, five: bool,
        ) {
            let memory = memory();
            for (index, entry) in (0u64..).zip(&entries) {
                put(&memory, ROOT + index * 8 * 67 % 0x8000 / 8 * 8, *entry);
            }
            let mut sregs = sregs();
            sregs.cr3 = cr3;
            sregs.ss.dpl = if user { 3 } else { 0 };
            if five {
                sregs.cr4 |= CR4_LA57;
            }
            let tables = PageTables::new(&memory, &sregs, 0);
            let mut bytes = [0; 48];
            let _ = tables.read(address, &mut bytes);
            let _ = tables.translate(address, Access::Write);
            prop_assert!(tables.fetch(address, &mut bytes) <= bytes.len());
        }
    }
}

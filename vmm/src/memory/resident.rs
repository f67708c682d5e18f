//! Which pages of guest memory the host keeps for it: what was never touched
//! need not be looked at.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{GuestMemory, PAGE_SIZE, PageSet};

/// Entries of the page map are looked at in batches.
const BATCH: usize = 4096;
const ENTRY: usize = 8;
/// Bits of an entry (`Documentation/admin-guide/mm/pagemap.rst`).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// The pages of `memory` that this process has, in memory or swapped out,
/// counted through its ranges in order. Those that are not among them are zero,
/// or as they are in the file that is mapped there.
///
/// # Errors
/// `/proc/self/pagemap` cannot be read.
pub fn resident_pages(memory: &GuestMemory) -> io::Result<PageSet> {
    let map = File::open("/proc/self/pagemap")?;
    let total: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    let mut resident = PageSet::none(total / PAGE_SIZE);
    let mut buffer = vec![0; BATCH * ENTRY];
    let mut first = 0;
    for region in memory.iter() {
        let pages = region.len() / PAGE_SIZE;
        let host_page = region.as_ptr() as u64 / PAGE_SIZE;
        let mut page = 0;
        while page < pages {
            let count = (pages - page).min(BATCH as u64);
            let bytes = &mut buffer[..count as usize * ENTRY];
            map.read_exact_at(bytes, (host_page + page) * ENTRY as u64)?;
            for (index, entry) in (0..).zip(bytes.as_chunks::<ENTRY>().0) {
                if u64::from_ne_bytes(*entry) & (PRESENT | SWAPPED) != 0 {
                    resident.insert(first + page + index);
                }
            }
            page += count;
        }
        first += pages;
    }
    Ok(resident)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn only_touched_pages_are_resident() {
        let ranges = [
            (GuestAddress(0), 64 << 12),
            (GuestAddress(1 << 20), 64 << 12),
        ];
        let memory = GuestMemory::from_ranges(&ranges).unwrap();
        memory.write_slice(&[1], GuestAddress(5 << 12)).unwrap();
        memory
            .write_slice(&[1], GuestAddress((1 << 20) + (7 << 12)))
            .unwrap();
        let resident = resident_pages(&memory).unwrap();
        assert!(resident.contains(5) && resident.contains(64 + 7));
        // A host may use larger pages than it must.
        assert!(resident.count() <= 128);
    }
}

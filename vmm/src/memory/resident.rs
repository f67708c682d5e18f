//! Which pages of guest memory the host keeps for it, and which are the guest's
//! alone: what was never touched need not be looked at.

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
/// It is a page of a file, or of memory that is shared.
const OF_FILE: u64 = 1 << 61;

/// The pages of `memory` that this process has, in memory or swapped out,
/// counted through its ranges in order. Those that are not among them are zero,
/// or as they are in the file that is mapped there.
///
/// # Errors
/// `/proc/self/pagemap` cannot be read.
pub fn resident_pages(memory: &GuestMemory) -> io::Result<PageSet> {
    pages(memory, |entry| entry & (PRESENT | SWAPPED) != 0)
}

/// The pages of `memory`, which is mapped privately from files, that are not
/// the files' any more: whoever writes to one, the guest, its devices or KVM,
/// gets an anonymous copy of it. There may be some that were not written to.
///
/// # Errors
/// `/proc/self/pagemap` cannot be read.
pub fn written_pages(memory: &GuestMemory) -> io::Result<PageSet> {
    // What was swapped out was anonymous; a page of a file that is being moved
    // counts as swapped too, but is marked as the file's.
    pages(memory, |entry| {
        entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0
    })
}

/// The pages whose entries in the page map are wanted.
fn pages(memory: &GuestMemory, is_wanted: impl Fn(u64) -> bool) -> io::Result<PageSet> {
    let map = File::open("/proc/self/pagemap")?;
    let total: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    let mut wanted = PageSet::none(total / PAGE_SIZE);
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
                if is_wanted(u64::from_ne_bytes(*entry)) {
                    wanted.insert(first + page + index);
                }
            }
            page += count;
        }
        first += pages;
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::memory::{Backing, Extent, MemoryFile, RestoreMode, restore};
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

    #[test]
    fn pages_of_a_file_are_told_from_those_that_were_written() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 12).unwrap();
        file.write_all_at(&vec![1; 10 << 12], 0).unwrap();
        let backing = Backing(vec![MemoryFile {
            file: Arc::new(file),
            parts: None,
        }]);
        let range = Extent {
            start: 0,
            len: 64 << 12,
        };
        let memory = restore(&[range], &backing, RestoreMode::OnDemand).unwrap();
        let mut read = vec![0; 64 << 12];
        memory.read_slice(&mut read, GuestAddress(0)).unwrap();
        assert_eq!(written_pages(&memory).unwrap().count(), 0);
        // One with data, one without, and two at once.
        for (at, len) in [(3 << 12, 1), (40 << 12, 1), ((50 << 12) - 1, 2)] {
            memory.write_slice(&vec![7; len], GuestAddress(at)).unwrap();
        }
        let written = written_pages(&memory).unwrap();
        let runs: Vec<_> = written.runs().collect();
        assert_eq!(runs, [3..4, 40..41, 49..51]);
    }
}

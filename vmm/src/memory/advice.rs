//! Advice to the host about guest memory.

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::GuestMemory;

/// Size of a transparent huge page.
const HUGE_PAGE: u64 = 2 << 20;

/// Asks for transparent huge pages for all of the memory.
pub(super) fn huge_pages(memory: &GuestMemory) {
    for region in memory.iter() {
        advise(region, 0, region.len());
    }
}

/// Asks for them for the huge pages that lie in `start..end`, at its ends at
/// least by half: to clear one costs as much as hundreds of faults for small ones.
pub(super) fn huge_pages_for(memory: &GuestMemory, start: u64, end: u64) {
    let Some(region) = memory.find_region(GuestAddress(start)) else {
        return;
    };
    let base = region.start_addr().0;
    let nearest = |address: u64| (address + HUGE_PAGE / 2) & !(HUGE_PAGE - 1);
    let first = nearest(start).saturating_sub(base);
    let last = nearest(end).saturating_sub(base).min(region.len());
    if first < last {
        advise(region, first, last);
    }
}

/// Only advice: a host that cannot is no error.
fn advise(region: &impl GuestMemoryRegion, first: u64, last: u64) {
    let Ok(start) = region.get_host_address(MemoryRegionAddress(first)) else {
        return;
    };
    let length = last.saturating_sub(first) as usize;
    // SAFETY: the range lies in one live mapping, the region's, and the advice
    // changes no content.
    unsafe { libc::madvise(start.cast(), length, libc::MADV_HUGEPAGE) };
}

/// Loads `length` bytes from `start` on for reading, or has the host begin to.
pub(super) fn populate(start: *mut u8, length: usize) {
    // SAFETY: the caller's range is guest memory, and neither advice changes
    // any content; one that the host does not know fails.
    unsafe {
        if libc::madvise(start.cast(), length, libc::MADV_POPULATE_READ) != 0 {
            libc::madvise(start.cast(), length, libc::MADV_WILLNEED);
        }
    }
}

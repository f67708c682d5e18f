//! Advice to the host about guest memory.

use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

/// Asks for transparent huge pages. Only advice: a host that cannot is no error.
pub(super) fn transparent_huge_pages(region: &GuestRegionMmap<()>) {
    // SAFETY: the range is exactly one live mapping, and the advice changes no
    // content.
    unsafe {
        libc::madvise(
            region.as_ptr().cast(),
            region.len() as usize,
            libc::MADV_HUGEPAGE,
        );
    }
}

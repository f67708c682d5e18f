//! Which pages of guest memory this process has written.
//!
//! KVM's dirty log knows what the guest writes, and what KVM does on its
//! behalf; what devices write comes through our own mapping and is marked
//! here. Nothing is kept until somebody asks for it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

/// Size of a page, the unit in which memory is tracked and saved.
pub const PAGE_SIZE: u64 = 4096;

/// A bit for each page of a region of guest memory. Until tracking is started,
/// a mark costs one load and is forgotten.
#[derive(Debug, Default)]
pub struct DirtyBitmap {
    pages: usize,
    words: OnceLock<Box<[AtomicU64]>>,
}

impl DirtyBitmap {
    /// From now on marks are kept. It stays so as long as the region lives.
    pub fn start(&self) {
        self.words.get_or_init(|| {
            (0..self.pages.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect()
        });
    }

    /// Whether marks are kept.
    pub fn is_tracking(&self) -> bool {
        self.words.get().is_some()
    }

    /// The marks since the last call, which are cleared: a bit for each page,
    /// the lowest bit first. Empty when nothing is tracked.
    pub fn take(&self) -> Vec<u64> {
        let words = self.words.get().map_or(&[][..], |words| words);
        words
            .iter()
            .map(|word| word.swap(0, Ordering::AcqRel))
            .collect()
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyBitmap {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for DirtyBitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let Some(words) = self.words.get() else {
            return;
        };
        if len == 0 {
            return;
        }
        let page = PAGE_SIZE as usize;
        for page in offset / page..=offset.saturating_add(len - 1) / page {
            if let Some(word) = words.get(page / 64) {
                word.fetch_or(1 << (page % 64), Ordering::AcqRel);
            }
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE_SIZE as usize;
        self.words
            .get()
            .and_then(|words| words.get(page / 64))
            .is_some_and(|word| word.load(Ordering::Acquire) & 1 << (page % 64) != 0)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for DirtyBitmap {
    fn with_len(len: usize) -> Self {
        Self {
            pages: len.div_ceil(PAGE_SIZE as usize),
            words: OnceLock::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    use crate::memory::GuestMemory;

    #[test]
    fn nothing_is_kept_before_it_is_asked_for() {
        let bitmap = DirtyBitmap::with_len(100 * 4096);
        bitmap.mark_dirty(0, 4096);
        assert!(!bitmap.is_tracking());
        assert!(bitmap.take().is_empty());
        bitmap.start();
        assert!(bitmap.is_tracking() && !bitmap.dirty_at(0));
        assert_eq!(bitmap.take(), [0, 0]);
    }

    #[test]
    fn a_write_marks_every_page_that_it_touches() {
        let bitmap = DirtyBitmap::with_len(100 * 4096);
        bitmap.start();
        bitmap.mark_dirty(4095, 2);
        bitmap.mark_dirty(65 * 4096, 0);
        bitmap.mark_dirty(64 * 4096, 2 * 4096);
        assert!(bitmap.dirty_at(4096) && !bitmap.dirty_at(2 * 4096));
        // Beyond the end: ignored.
        bitmap.mark_dirty(200 * 4096, 1);
        assert_eq!(bitmap.take(), [3, 3]);
        assert_eq!(bitmap.take(), [0, 0]);
    }

    #[test]
    fn what_is_written_through_guest_memory_is_marked() {
        let start = GuestAddress(1 << 20);
        let memory = GuestMemory::from_ranges(&[(start, 8 * 4096)]).unwrap();
        let region = memory.find_region(start).unwrap();
        (**region).bitmap().start();
        memory
            .write_slice(&[1; 10], GuestAddress((1 << 20) + 4090))
            .unwrap();
        memory
            .read_slice(&mut [0; 10], GuestAddress((1 << 20) + 3 * 4096))
            .unwrap();
        assert_eq!((**region).bitmap().take(), [3]);
    }
}

//! The SHA-256 of what a file holds, which is the same for every copy of it,
//! however sparse.
//!
//! It is that of: for each page of the file that is not all zero, in order,
//! its offset (8 bytes, little-endian) and its bytes (4096; fewer at the end of
//! a file that has no whole number of pages), and after the last page the
//! file's length (8 bytes, little-endian).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::error::SnapshotError;
use super::state::FileContent;
use crate::memory::{DataRuns, PAGE_SIZE};

/// Size of a page, as the length of a slice.
pub(super) const PAGE: usize = PAGE_SIZE as usize;
/// Bytes that are looked at at once: a whole number of pages.
pub(super) const BUFFER: usize = 64 * PAGE;

/// Whether a page, or what there is of it, is all zero.
pub(super) fn is_zero(page: &[u8]) -> bool {
    static ZEROES: [u8; PAGE] = [0; PAGE];
    ZEROES
        .get(..page.len())
        .is_some_and(|zeroes| page == zeroes)
}

/// Takes in a file's pages in order.
#[derive(Default)]
pub(super) struct ContentHasher {
    sha256: Sha256,
    data: u64,
}

impl ContentHasher {
    /// The page at `offset`, which is not all zero.
    pub(super) fn page(&mut self, offset: u64, page: &[u8]) {
        self.sha256.update(offset.to_le_bytes());
        self.sha256.update(page);
        self.data += page.len() as u64;
    }

    /// That was all of a file of `size` bytes.
    pub(super) fn finish(mut self, size: u64) -> FileContent {
        self.sha256.update(size.to_le_bytes());
        FileContent {
            size,
            sha256: self.sha256.finalize().into(),
            data: self.data,
        }
    }
}

/// What a file holds. Moves its position.
///
/// # Errors
/// [`SnapshotError::Io`].
pub(super) fn of_file(file: &File, path: &Path) -> Result<FileContent, SnapshotError> {
    let failed = |source| SnapshotError::io("read", path)(source);
    let mut hasher = ContentHasher::default();
    let mut buffer = vec![0; BUFFER];
    let runs = DataRuns::new(file).map_err(failed)?;
    let size = runs.file_len();
    let mut next = 0;
    for run in runs {
        let run = run.map_err(failed)?;
        // Whole pages, each once, wherever the file system has its blocks.
        let mut offset = (run.start / PAGE_SIZE * PAGE_SIZE).max(next);
        let end = run.end.next_multiple_of(PAGE_SIZE).min(size);
        while offset < end {
            let count = (end - offset).min(BUFFER as u64);
            let bytes = &mut buffer[..count as usize];
            file.read_exact_at(bytes, offset).map_err(failed)?;
            for (page, at) in bytes.chunks(PAGE).zip((offset..).step_by(PAGE)) {
                if !is_zero(page) {
                    hasher.page(at, page);
                }
            }
            offset += count;
        }
        next = offset;
    }
    Ok(hasher.finish(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(file: &File) -> FileContent {
        of_file(file, Path::new("file")).unwrap()
    }

    #[test]
    fn sparse_and_dense_copies_are_the_same() {
        let bytes: Vec<u8> = (0..300_u64 * 4096 + 512)
            .map(|at| {
                if at / 4096 % 7 == 3 {
                    (at % 251) as u8
                } else {
                    0
                }
            })
            .collect();
        let dense = tempfile::tempfile().unwrap();
        dense.write_all_at(&bytes, 0).unwrap();
        let sparse = tempfile::tempfile().unwrap();
        sparse.set_len(bytes.len() as u64).unwrap();
        for (index, page) in (0..).zip(bytes.chunks(4096)) {
            if !is_zero(page) {
                sparse.write_all_at(page, index * 4096).unwrap();
            }
        }
        let found = content(&dense);
        assert_eq!(found, content(&sparse));
        assert_eq!((found.size, found.data), (bytes.len() as u64, 43 * 4096));

        dense.write_all_at(&[1], 5).unwrap();
        assert_ne!(found.sha256, content(&dense).sha256);
    }

    #[test]
    fn length_and_place_count() {
        let empty = |len| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(len).unwrap();
            file
        };
        assert_ne!(content(&empty(4096)).sha256, content(&empty(8192)).sha256);
        let at = |offset| {
            let file = empty(8192);
            file.write_all_at(b"x", offset).unwrap();
            content(&file).sha256
        };
        assert_ne!(at(0), at(4096));
        let tail = empty(512);
        tail.write_all_at(b"x", 511).unwrap();
        assert_eq!(content(&tail).data, 512);
    }
}

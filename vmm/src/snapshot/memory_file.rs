//! Writes a machine's memory into a file: only the pages that are not zero.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::digest::{BUFFER, ContentHasher, PAGE, is_zero};
use super::error::SnapshotError;
use super::state::FileContent;
use crate::memory::{Backing, Extent, GuestMemory, PAGE_SIZE, PageSet, resident_pages};

/// The ranges that have memory.
pub(super) fn ranges(memory: &GuestMemory) -> Vec<Extent> {
    memory
        .iter()
        .map(|region| Extent {
            start: region.start_addr().0,
            len: region.len(),
        })
        .collect()
}

/// The pages that may hold something: those that were touched, and those of
/// the files that the memory was restored from.
pub(super) fn used_pages(
    memory: &GuestMemory,
    backing: &Backing,
    path: &Path,
) -> Result<PageSet, SnapshotError> {
    let total: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    let pages = total / PAGE_SIZE;
    let mut used = backing
        .pages(pages)
        .map_err(SnapshotError::io("find the data of the memory for", path))?;
    // Without /proc all pages are looked at, which takes longer.
    match resident_pages(memory) {
        Ok(resident) => used.insert_all(&resident),
        Err(_) => used.insert_range(0..pages),
    }
    Ok(used)
}

/// Makes the file at `path` with those of `pages` that are not zero. No
/// processor may be running, and no device working. What is in the file need
/// not be on disk yet.
pub(super) fn write(
    memory: &GuestMemory,
    pages: &PageSet,
    path: &Path,
) -> Result<FileContent, SnapshotError> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(SnapshotError::io("make", path))?;
    let size: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    file.set_len(size)
        .map_err(SnapshotError::io("set the length of", path))?;

    let mut writer = Writer {
        file: &file,
        path,
        hasher: ContentHasher::default(),
    };
    let mut buffer = vec![0; BUFFER];
    let mut regions = memory.iter();
    let mut region = regions.next();
    let mut region_start = 0;
    for run in pages.runs() {
        let mut offset = run.start * PAGE_SIZE;
        while offset < run.end * PAGE_SIZE {
            let Some(current) = region else {
                break;
            };
            let region_end = region_start + current.len();
            if offset >= region_end {
                region_start = region_end;
                region = regions.next();
                continue;
            }
            let count = (run.end * PAGE_SIZE).min(region_end) - offset;
            let bytes = &mut buffer[..count.min(BUFFER as u64) as usize];
            current
                .read_slice(bytes, MemoryRegionAddress(offset - region_start))
                .map_err(|error| {
                    SnapshotError::io("read guest memory for", path)(std::io::Error::other(error))
                })?;
            writer.write(offset, bytes)?;
            offset += bytes.len() as u64;
        }
    }
    Ok(writer.hasher.finish(size))
}

struct Writer<'a> {
    file: &'a File,
    path: &'a Path,
    hasher: ContentHasher,
}

impl Writer<'_> {
    /// Whole pages at `offset`: those that are not zero, as few writes as can be.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SnapshotError> {
        let mut start = 0;
        while start < bytes.len() {
            let used = |page: &&[u8]| !is_zero(page);
            let count = bytes[start..].chunks(PAGE).take_while(used).count();
            let end = start + count * PAGE;
            for (page, at) in bytes[start..end].chunks(PAGE).zip((start..).step_by(PAGE)) {
                self.hasher.page(offset + at as u64, page);
            }
            if count > 0 {
                self.file
                    .write_all_at(&bytes[start..end], offset + start as u64)
                    .map_err(SnapshotError::io("write", self.path))?;
            }
            // The page that ended the run is zero, if there is one.
            start = end + PAGE;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! The initramfs: segments that are concatenated in guest memory.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::{self, GuestMemory};

/// Where the initramfs was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initrd {
    /// Guest-physical address.
    pub address: u32,
    /// Size, in bytes.
    pub size: u32,
}

/// Why an initramfs cannot be used.
#[derive(Debug, Error)]
pub enum InitrdError {
    /// A segment could not be read.
    #[error("cannot read the initramfs segment {}: {source}", path.display())]
    Read {
        /// The segment's file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A segment is not a plain file.
    #[error("the initramfs segment {} is not a regular file", path.display())]
    NotAFile {
        /// The segment's path.
        path: PathBuf,
    },
    /// A segment got shorter while it was read.
    #[error("cannot load the initramfs segment {}: {source}", path.display())]
    Load {
        /// The segment's file.
        path: PathBuf,
        /// What the memory said.
        source: vm_memory::GuestMemoryError,
    },
    /// There is not enough memory.
    #[error(
        "the initramfs ({size} bytes) does not fit between the kernel's end at {kernel_end:#x} \
             and the end of low memory at {memory_end:#x}: raise mem_size_mib"
    )]
    TooLarge {
        /// Size of all segments, in bytes.
        size: u64,
        /// First address behind the kernel.
        kernel_end: u64,
        /// First address behind low memory.
        memory_end: u64,
    },
}

/// The kernel looks for the next archive at a multiple of four bytes
/// (`Documentation/driver-api/early-userspace/buffer-format.rst`).
const SEGMENT_ALIGNMENT: u64 = 4;
const PAGE_SIZE: u64 = 0x1000;
/// Linux maps memory from the last large page that it finds free downwards. What
/// lies above takes it one more walk over all its tables.
const LARGE_PAGE_SIZE: u64 = 0x20_0000;

/// Loads the segments one behind the other near the end of low memory: below its
/// last large page, or in it where memory is too small for that.
///
/// # Errors
/// [`InitrdError`], which names the segment.
pub(super) fn load(
    memory: &GuestMemory,
    paths: &[PathBuf],
    kernel_end: u64,
) -> Result<Option<Initrd>, InitrdError> {
    let mut size = 0u64;
    let mut segments = Vec::with_capacity(paths.len());
    for path in paths {
        let (file, length) = open(path)?;
        let offset = size.next_multiple_of(SEGMENT_ALIGNMENT);
        size = offset.saturating_add(length);
        segments.push((path, file, offset, length));
    }
    if size == 0 {
        return Ok(None);
    }
    let memory_end = memory::low_memory_end(memory).0;
    let last_large_page = (memory_end & !(LARGE_PAGE_SIZE - 1)).saturating_sub(LARGE_PAGE_SIZE);
    let address = [last_large_page, memory_end]
        .into_iter()
        .filter_map(|end| Some(end.checked_sub(size)? & !(PAGE_SIZE - 1)))
        .find(|address| *address >= kernel_end)
        .ok_or(InitrdError::TooLarge {
            size,
            kernel_end,
            memory_end,
        })?;
    for (path, mut file, offset, length) in segments {
        memory
            .read_exact_volatile_from(GuestAddress(address + offset), &mut file, length as usize)
            .map_err(|source| InitrdError::Load {
                path: path.clone(),
                source,
            })?;
    }
    // Low memory ends below 4 GiB, so that both fit.
    Ok(Some(Initrd {
        address: address as u32,
        size: size as u32,
    }))
}

fn open(path: &Path) -> Result<(File, u64), InitrdError> {
    let wrong = |source| InitrdError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(wrong)?;
    let metadata = file.metadata().map_err(wrong)?;
    if !metadata.is_file() {
        return Err(InitrdError::NotAFile {
            path: path.to_owned(),
        });
    }
    Ok((file, metadata.len()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::memory::layout;

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&layout::ram_ranges(16 << 20)).unwrap()
    }

    fn files(contents: &[&[u8]]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let paths = contents
            .iter()
            .enumerate()
            .map(|(index, content)| {
                let path = dir.path().join(index.to_string());
                fs::write(&path, content).unwrap();
                path
            })
            .collect();
        (dir, paths)
    }

    #[test]
    fn segments_are_aligned_and_leave_the_last_large_page_free() {
        let (_dir, paths) = files(&[b"07070", b"second"]);
        let memory = memory();
        let initrd = load(&memory, &paths, 0x10_0000).unwrap().unwrap();
        assert_eq!(
            initrd,
            Initrd {
                address: (14 << 20) - 0x1000,
                size: 14
            }
        );
        let mut bytes = [0xff; 14];
        memory
            .read_slice(&mut bytes, GuestAddress(initrd.address.into()))
            .unwrap();
        assert_eq!(&bytes, b"07070\0\0\0second");
    }

    #[test]
    fn small_memory_is_used_to_its_end() {
        let (_dir, paths) = files(&[&[0; 0x2000]]);
        let initrd = load(&memory(), &paths, 14 << 20).unwrap().unwrap();
        assert_eq!(initrd.address, (16 << 20) - 0x2000);
    }

    #[test]
    fn none_when_there_are_no_bytes() {
        let (_dir, paths) = files(&[b""]);
        assert_eq!(load(&memory(), &paths, 0).unwrap(), None);
        assert_eq!(load(&memory(), &[], 0).unwrap(), None);
    }

    #[test]
    fn one_that_reaches_into_the_kernel_is_refused() {
        let (_dir, paths) = files(&[&[0; 0x2000]]);
        let error = load(&memory(), &paths, (16 << 20) - 0x1fff).unwrap_err();
        assert!(error.to_string().contains("raise mem_size_mib"), "{error}");
        assert!(load(&memory(), &paths, (16 << 20) - 0x2000).is_ok());
    }

    #[test]
    fn missing_file_and_directory_are_named() {
        let error = load(&memory(), &["/nonexistent/initrd".into()], 0).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/initrd"), "{error}");
        let error = load(&memory(), &["/".into()], 0).unwrap_err();
        assert!(matches!(error, InitrdError::NotAFile { .. }), "{error}");
    }
}

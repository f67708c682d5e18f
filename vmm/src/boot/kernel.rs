//! The kernel image: an ELF executable for x86-64 (System V gABI, chapters 4
//! and 5), loaded at the physical addresses that it was linked for.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::{self, GuestMemory, layout};

/// A kernel in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedKernel {
    /// Where the first processor starts.
    pub entry: GuestAddress,
    /// First address behind the kernel's image and bss.
    pub end: u64,
}

/// Why a kernel image cannot be booted.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The file could not be read.
    #[error("cannot read the kernel image {}: {source}", path.display())]
    Read {
        /// The image.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} is not an ELF kernel image (vmlinux) for x86-64, but {found}", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What it seems to be, and what to do.
        found: &'static str,
    },
    /// The file ends before what its headers promise.
    #[error("the kernel image {} is truncated: its {what} should reach to byte {needed}, \
             but the file has {size}: build or copy it again", path.display())]
    Truncated {
        /// The image.
        path: PathBuf,
        /// Which part is missing.
        what: &'static str,
        /// Bytes that the file should have at least.
        needed: u64,
        /// Bytes that it has.
        size: u64,
    },
    /// The headers contradict themselves.
    #[error("the kernel image {} is malformed: {what}", path.display())]
    Malformed {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// The kernel lies where there is no memory.
    #[error("the kernel image {} wants {start:#x}..{end:#x} of guest memory, but only \
             {low:#x}..{high:#x} is there for it: raise mem_size_mib, or use a kernel that is \
             linked lower", path.display(), low = layout::HIGH_MEMORY)]
    OutsideMemory {
        /// The image.
        path: PathBuf,
        /// First address that it needs.
        start: u64,
        /// First address behind it.
        end: u64,
        /// First address behind low memory.
        high: u64,
    },
    /// A segment could not be copied.
    #[error("cannot load the kernel image {}: {source}", path.display())]
    Load {
        /// The image.
        path: PathBuf,
        /// What the memory said.
        source: vm_memory::GuestMemoryError,
    },
}

const ELF_HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
/// More program headers than any kernel has (Linux: five).
const MAX_PROGRAM_HEADERS: u16 = 64;
const PT_LOAD: u32 = 1;
const ET_EXEC: u16 = 2;
const EM_X86_64: u16 = 62;

/// One loadable segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    file_offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

/// Loads an image.
///
/// # Errors
/// [`KernelError`], which names the file and what is wrong with it.
pub(super) fn load(memory: &GuestMemory, path: &Path) -> Result<LoadedKernel, KernelError> {
    let mut image = Image::open(path)?;
    let (entry, segments) = image.parse(memory::low_memory_end(memory).0)?;
    let start = segments.iter().map(|segment| segment.address).min();
    let end = segments
        .iter()
        .map(|segment| segment.address + segment.memory_size)
        .max()
        .unwrap_or(0);
    memory::expect_filled(memory, start.unwrap_or(end), end);
    for segment in segments {
        image
            .file
            .seek(SeekFrom::Start(segment.file_offset))
            .map_err(|source| image.read_error(source))?;
        // What a segment has beyond its file part is zero, as new memory is.
        memory
            .read_exact_volatile_from(
                GuestAddress(segment.address),
                &mut image.file,
                segment.file_size as usize,
            )
            .map_err(|source| KernelError::Load {
                path: path.to_owned(),
                source,
            })?;
    }
    Ok(LoadedKernel {
        entry: GuestAddress(entry),
        end,
    })
}

/// An open image.
struct Image<'a> {
    path: &'a Path,
    file: File,
    size: u64,
}

impl<'a> Image<'a> {
    fn open(path: &'a Path) -> Result<Self, KernelError> {
        let wrong = |source| KernelError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(wrong)?;
        let metadata = file.metadata().map_err(wrong)?;
        if !metadata.is_file() {
            return Err(KernelError::NotAKernel {
                path: path.to_owned(),
                found: "a directory or device",
            });
        }
        Ok(Self {
            path,
            file,
            size: metadata.len(),
        })
    }

    /// Entry point and segments, all checked to lie within the file and within
    /// the guest's low memory, which ends at `memory_end`.
    fn parse(&self, memory_end: u64) -> Result<(u64, Vec<Segment>), KernelError> {
        let mut header = [0; ELF_HEADER_SIZE];
        self.read_start(&mut header)?;
        let phoff = u64_at(&header, 32);
        let phnum = u16_at(&header, 56);
        if usize::from(u16_at(&header, 54)) != PROGRAM_HEADER_SIZE {
            return Err(self.malformed("its program headers have the wrong size"));
        }
        if phnum == 0 || phnum > MAX_PROGRAM_HEADERS {
            return Err(self.malformed("it has no or too many program headers"));
        }
        let mut table = vec![0; usize::from(phnum) * PROGRAM_HEADER_SIZE];
        self.within_file("program header table", phoff, table.len() as u64)?;
        self.file
            .read_exact_at(&mut table, phoff)
            .map_err(|source| self.read_error(source))?;

        let mut segments = Vec::with_capacity(usize::from(phnum));
        for entry in table.chunks_exact(PROGRAM_HEADER_SIZE) {
            if u32_at(entry, 0) == PT_LOAD {
                segments.extend(self.segment(entry, memory_end)?);
            }
        }
        let entry = u64_at(&header, 24);
        if !segments
            .iter()
            .any(|s| (s.address..s.address + s.memory_size).contains(&entry))
        {
            return Err(self.malformed(
                "its entry point is in none of its segments (is it a kernel, linked with physical \
                 addresses?)",
            ));
        }
        Ok((entry, segments))
    }

    fn segment(&self, entry: &[u8], memory_end: u64) -> Result<Option<Segment>, KernelError> {
        let segment = Segment {
            file_offset: u64_at(entry, 8),
            address: u64_at(entry, 24),
            file_size: u64_at(entry, 32),
            memory_size: u64_at(entry, 40),
        };
        if segment.memory_size == 0 {
            return Ok(None);
        }
        if segment.file_size > segment.memory_size {
            return Err(self.malformed("a segment is larger in the file than in memory"));
        }
        self.within_file("contents", segment.file_offset, segment.file_size)?;
        let end = segment.address.checked_add(segment.memory_size);
        if segment.address < layout::HIGH_MEMORY || end.is_none_or(|end| end > memory_end) {
            return Err(KernelError::OutsideMemory {
                path: self.path.to_owned(),
                start: segment.address,
                end: end.unwrap_or(u64::MAX),
                high: memory_end,
            });
        }
        Ok(Some(segment))
    }

    /// Reads the ELF header, or says what else the file is.
    fn read_start(&self, header: &mut [u8; ELF_HEADER_SIZE]) -> Result<(), KernelError> {
        // Enough for the magic number of a bzImage at 0x202.
        let mut start = [0; 0x210];
        let length = self.size.min(start.len() as u64) as usize;
        let start = &mut start[..length];
        self.file
            .read_exact_at(start, 0)
            .map_err(|source| self.read_error(source))?;
        if let Some(found) = not_an_elf_kernel(start) {
            return Err(KernelError::NotAKernel {
                path: self.path.to_owned(),
                found,
            });
        }
        let Some(first) = start.first_chunk() else {
            return Err(self.truncated("ELF header", ELF_HEADER_SIZE as u64));
        };
        *header = *first;
        if u16_at(header, 16) != ET_EXEC || u16_at(header, 18) != EM_X86_64 {
            return Err(KernelError::NotAKernel {
                path: self.path.to_owned(),
                found: "an ELF file of another type or for another processor (a program, library \
                        or module?)",
            });
        }
        Ok(())
    }

    fn within_file(&self, what: &'static str, offset: u64, size: u64) -> Result<(), KernelError> {
        match offset.checked_add(size) {
            None => Err(self.malformed("an offset in it overflows")),
            Some(needed) if needed > self.size => Err(self.truncated(what, needed)),
            Some(_) => Ok(()),
        }
    }

    fn truncated(&self, what: &'static str, needed: u64) -> KernelError {
        KernelError::Truncated {
            path: self.path.to_owned(),
            what,
            needed,
            size: self.size,
        }
    }

    fn malformed(&self, what: &'static str) -> KernelError {
        KernelError::Malformed {
            path: self.path.to_owned(),
            what,
        }
    }

    fn read_error(&self, source: io::Error) -> KernelError {
        KernelError::Read {
            path: self.path.to_owned(),
            source,
        }
    }
}

/// What the beginning of a file shows it to be, if that is no 64-bit ELF file.
fn not_an_elf_kernel(start: &[u8]) -> Option<&'static str> {
    if start.is_empty() {
        return Some("an empty file: build or copy it again");
    }
    if start.starts_with(b"\x7fELF") {
        return match (start.get(4), start.get(5)) {
            (Some(2), Some(1)) | (None, _) | (_, None) => None,
            (Some(1), _) => Some("a 32-bit ELF file"),
            _ => Some("an ELF file of a foreign byte order"),
        };
    }
    if start.get(0x202..0x206) == Some(b"HdrS") {
        return Some(
            "a compressed kernel (bzImage): take the vmlinux of the same build, or extract it \
             with the kernel's scripts/extract-vmlinux",
        );
    }
    let compressed: [(&[u8], &str); 6] = [
        (b"\x1f\x8b", "a gzip file: decompress it first"),
        (b"\xfd7zXZ\0", "an xz file: decompress it first"),
        (b"\x28\xb5\x2f\xfd", "a zstd file: decompress it first"),
        (b"BZh", "a bzip2 file: decompress it first"),
        (b"\x89LZO", "an lzop file: decompress it first"),
        (b"0707", "a cpio archive (an initramfs?)"),
    ];
    if let Some((_, found)) = compressed
        .iter()
        .find(|(magic, _)| start.starts_with(magic))
    {
        return Some(found);
    }
    if start.starts_with(b"MZ") {
        return Some("a PE executable (an EFI image?)");
    }
    if start
        .iter()
        .all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
    {
        return Some("a text file");
    }
    Some("a file of an unknown kind")
}

/// The little-endian numbers of a header, whose length the caller has checked.
fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u64_from(bytes, offset, 2) as u16
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u64_from(bytes, offset, 4) as u32
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64_from(bytes, offset, 8)
}

fn u64_from(bytes: &[u8], offset: usize, size: usize) -> u64 {
    bytes[offset..offset + size]
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests;

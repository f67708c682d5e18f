//! Guest memory out of files: mapped privately, so that a page is only loaded
//! when it is touched, shared as long as nobody writes to it, and never written
//! back.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::mmap::{GuestRegionMmap, MmapRegionBuilder};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress,
};

use super::{DataRuns, DirtyBitmap, Extent, GuestMemory, MemoryError, PAGE_SIZE, PageSet, advice};

/// Mappings that the parts of upper layers may take. The host has a limit for
/// a process (`vm.max_map_count`, 65530), and each costs time at every restore.
const MOST_MAPPINGS: usize = 512;
/// Bytes that are read at once where they are read.
const BUFFER: usize = 256 << 10;

/// A file that holds memory, or a part of it, at the offsets of the whole.
#[derive(Debug, Clone)]
pub struct MemoryFile {
    /// The file. Its length is that of all ranges.
    pub file: Arc<File>,
    /// Which parts of it count, in order; all of it for the lowest layer.
    pub parts: Option<Vec<Extent>>,
}

/// Files that memory comes from, the lowest layer first.
#[derive(Debug, Clone, Default)]
pub struct Backing(pub Vec<MemoryFile>);

impl Backing {
    /// The pages that these files may have something in, of memory of as many
    /// pages, counted through its ranges in order.
    ///
    /// # Errors
    /// What the system says.
    pub fn pages(&self, pages: u64) -> io::Result<PageSet> {
        let mut set = PageSet::none(pages);
        for layer in &self.0 {
            match &layer.parts {
                Some(parts) => {
                    for part in parts {
                        set.insert_bytes(part.start, part.start + part.len);
                    }
                }
                None => {
                    for run in DataRuns::new(&layer.file)? {
                        let run = run?;
                        set.insert_bytes(run.start, run.end);
                    }
                }
            }
        }
        Ok(set)
    }
}

/// How memory is restored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RestoreMode {
    /// Pages are loaded when they are touched.
    #[default]
    OnDemand,
    /// All are read at once, into huge pages where the host gives them: slower
    /// to start, faster afterwards, and shared with nobody.
    HugePages,
}

/// Memory of these ranges with what is in the files.
///
/// The ranges must be whole pages, in order, and apart; the layers' parts must
/// be whole pages and lie in the file.
///
/// # Errors
/// [`MemoryError::Restore`].
pub fn restore(
    ranges: &[Extent],
    backing: &Backing,
    mode: RestoreMode,
) -> Result<GuestMemory, MemoryError> {
    let failed = |what| move |source| MemoryError::Restore { what, source };
    let Some((lowest, upper)) = backing.0.split_first() else {
        return Err(failed("find a file of it")(io::ErrorKind::NotFound.into()));
    };
    let base = (mode == RestoreMode::OnDemand).then_some(&lowest.file);
    let memory = map_ranges(ranges, base)?;
    if mode == RestoreMode::HugePages {
        advice::huge_pages(&memory);
        let runs = DataRuns::new(&lowest.file).map_err(failed("read the file of"))?;
        for run in runs {
            let run = run.map_err(failed("read the file of"))?;
            read_in(&memory, &lowest.file, run.start, run.end).map_err(failed("read"))?;
        }
    }
    let mut mappings = 0;
    for layer in upper {
        for part in layer.parts.iter().flatten() {
            let (start, end) = (part.start, part.start + part.len);
            if mode == RestoreMode::OnDemand && mappings < MOST_MAPPINGS {
                mappings += 1;
                map_over(&memory, &layer.file, start, end).map_err(failed("map a change of"))?;
            } else {
                read_in(&memory, &layer.file, start, end).map_err(failed("read a change of"))?;
            }
        }
    }
    Ok(memory)
}

/// Maps each range from the file, one after the other, or without one.
fn map_ranges(ranges: &[Extent], file: Option<&Arc<File>>) -> Result<GuestMemory, MemoryError> {
    let failed = |source| MemoryError::Restore {
        what: "map",
        source,
    };
    let mut regions = Vec::with_capacity(ranges.len());
    let mut offset = 0;
    for range in ranges {
        let size = range.len as usize;
        let bitmap = <DirtyBitmap as vm_memory::bitmap::NewBitmap>::with_len(size);
        let mut flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        let mut region = MmapRegionBuilder::new_with_bitmap(size, bitmap)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
        match file {
            Some(file) => {
                region = region.with_file_offset(FileOffset::from_arc(Arc::clone(file), offset));
            }
            None => flags |= libc::MAP_ANONYMOUS,
        }
        let region = region
            .with_mmap_flags(flags)
            .build()
            .map_err(|error| failed(io::Error::other(error)))?;
        let region = GuestRegionMmap::new(region, GuestAddress(range.start))
            .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        regions.push(region);
        offset += range.len;
    }
    GuestMemory::from_regions(regions).map_err(|error| failed(io::Error::other(error)))
}

/// Calls `visit` with the parts of the file from `start` to `end` that lie in
/// one region each: the region, the offset in it, the offset in the file and
/// the length.
fn for_each_part(
    memory: &GuestMemory,
    (mut start, end): (u64, u64),
    mut visit: impl FnMut(&GuestRegionMmap<DirtyBitmap>, u64, u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut region_start = 0;
    for region in memory.iter() {
        let region_end = region_start + region.len();
        if start < end.min(region_end) {
            let count = end.min(region_end) - start;
            visit(region, start - region_start, start, count)?;
            start += count;
        }
        region_start = region_end;
    }
    if start < end {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// Puts a part of the file in place of what is mapped there.
fn map_over(memory: &GuestMemory, file: &File, start: u64, end: u64) -> io::Result<()> {
    for_each_part(memory, (start, end), |region, inside, offset, len| {
        let at = region
            .get_host_address(MemoryRegionAddress(inside))
            .map_err(io::Error::other)?;
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: the range lies within the region's own mapping, to which
        // nobody has a reference yet: what it replaces is guest memory by guest
        // memory of the same protection, which goes when the region is unmapped.
        let mapped = unsafe {
            libc::mmap(
                at.cast(),
                len as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED,
                file.as_raw_fd(),
                offset,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    })
}

/// Copies a part of the file into memory.
fn read_in(memory: &GuestMemory, file: &File, start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER.min((end - start) as usize)];
    for_each_part(memory, (start, end), |region, inside, offset, len| {
        let mut done = 0;
        while done < len {
            let count = (len - done).min(buffer.len() as u64);
            let bytes = &mut buffer[..count as usize];
            file.read_exact_at(bytes, offset + done)?;
            region
                .write_slice(bytes, MemoryRegionAddress(inside + done))
                .map_err(io::Error::other)?;
            done += count;
        }
        Ok(())
    })
}

/// Loads pages before they are touched, as far as the host can; `runs` are
/// pages counted through the memory's ranges in order. It is only advice.
pub fn prefetch(memory: &GuestMemory, runs: &PageSet) {
    for run in runs.runs() {
        let range = (run.start * PAGE_SIZE, run.end * PAGE_SIZE);
        // Beyond the end: a list of another memory.
        let _ = for_each_part(memory, range, |region, inside, _, len| {
            if let Ok(at) = region.get_host_address(MemoryRegionAddress(inside)) {
                advice::populate(at, len as usize);
            }
            Ok(())
        });
    }
}

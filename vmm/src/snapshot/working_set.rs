//! The pages that a restored guest needs first, so that the next one gets them
//! at once instead of one fault after the other. All numbers are little-endian:
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 8 | `insulaWS` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | number of runs |
//! | 16 | 8 | [`xxh64`](super::xxh64) of the runs |
//! | 24 | 8 each | runs: first page, number of pages (4 bytes each) |

use std::fs;
use std::path::Path;

use super::checksum::xxh64;
use super::error::SnapshotError;
use super::files::WORKING_SET;
use crate::memory::{GuestMemory, PageSet, resident_pages};

const MAGIC: &[u8; 8] = b"insulaWS";
const VERSION: u32 = 1;
const HEADER: usize = 24;
/// Pages between two runs that are not worth a run of their own.
const GAP: u64 = 4;

/// Notes which pages of `memory`, restored on demand from the snapshot in
/// `dir`, were touched until now.
///
/// # Errors
/// The pages are not known, or the file cannot be written.
pub fn record_working_set(dir: &Path, memory: &GuestMemory) -> Result<(), SnapshotError> {
    let path = dir.join(WORKING_SET);
    let touched =
        resident_pages(memory).map_err(SnapshotError::io("find the pages in memory for", &path))?;
    let temporary = dir.join(format!("{WORKING_SET}.{}", std::process::id()));
    fs::write(&temporary, encode(&touched))
        .and_then(|()| fs::rename(&temporary, &path))
        .map_err(|source| {
            let _ = fs::remove_file(&temporary);
            SnapshotError::io("write", &path)(source)
        })
}

/// The pages that were noted for the snapshot in `dir`, of memory of `pages`
/// pages. It is only advice: whatever is wrong with the file is as if there
/// was none.
pub fn working_set(dir: &Path, pages: u64) -> Option<PageSet> {
    decode(&fs::read(dir.join(WORKING_SET)).ok()?, pages)
}

fn encode(touched: &PageSet) -> Vec<u8> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for run in touched.runs() {
        match runs.last_mut() {
            Some((_, end)) if run.start - *end <= GAP => *end = run.end,
            _ => runs.push((run.start, run.end)),
        }
    }
    let mut file = vec![0; HEADER];
    for (start, end) in &runs {
        // Pages of the largest memory have 27 bits.
        file.extend((*start as u32).to_le_bytes());
        file.extend(((end - start) as u32).to_le_bytes());
    }
    let checksum = xxh64(&file[HEADER..]);
    file[..8].copy_from_slice(MAGIC);
    file[8..12].copy_from_slice(&VERSION.to_le_bytes());
    file[12..16].copy_from_slice(&(runs.len() as u32).to_le_bytes());
    file[16..24].copy_from_slice(&checksum.to_le_bytes());
    file
}

fn decode(file: &[u8], pages: u64) -> Option<PageSet> {
    let word = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_le_bytes);
    let (header, body) = file.split_first_chunk::<HEADER>()?;
    let (runs, rest) = body.as_chunks::<8>();
    let checksum = u64::from_le_bytes(header[16..24].try_into().ok()?);
    if header[..8] != *MAGIC
        || word(&header[8..12])? != VERSION
        || word(&header[12..16])? as usize != runs.len()
        || !rest.is_empty()
        || checksum != xxh64(body)
    {
        return None;
    }
    let mut set = PageSet::none(pages);
    for run in runs {
        let (first, count) = (u64::from(word(&run[..4])?), u64::from(word(&run[4..])?));
        set.insert_range(first..first + count);
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pages_come_back_with_at_most_small_gaps(ranges in prop::collection::vec((0..500_u64, 1..40_u64), 0..10)) {
            let mut set = PageSet::none(600);
            for (start, len) in ranges {
                set.insert_range(start..start + len);
            }
            let found = decode(&encode(&set), 600).unwrap();
            for run in set.runs() {
                prop_assert!(run.clone().all(|page| found.contains(page)));
            }
            for run in found.runs() {
                prop_assert!(set.contains(run.start) && set.contains(run.end - 1));
            }
        }

        #[test]
        fn any_bytes_are_pages_or_nothing(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&bytes, 100);
        }
    }

    #[test]
    fn damage_and_other_versions_are_no_advice() {
        let mut set = PageSet::none(100);
        set.insert_range(5..10);
        let good = encode(&set);
        assert_eq!(decode(&good, 100), Some(set));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(decode(&bad, 100), None, "byte {at}");
        }
        assert_eq!(decode(&good[..good.len() - 1], 100), None);
    }
}

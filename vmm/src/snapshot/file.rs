//! The state file's frame. All numbers are little-endian:
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 8 | [`MAGIC`] |
//! | 8 | 4 | format version, [`VERSION`] |
//! | 12 | 4 | 0 |
//! | 16 | 8 | length of the payload |
//! | 24 | 8 | [`xxh64`] of the payload |
//! | 32 | | payload: [`MachineState`] as CBOR |

use std::path::Path;

use super::checksum::xxh64;
use super::error::SnapshotError;
use super::state::MachineState;

/// What every state file begins with.
pub const MAGIC: [u8; 8] = *b"insulaSN";
/// What this program writes, and the newest that it reads. New fields of the
/// payload need no new version; another meaning of old ones does.
pub const VERSION: u32 = 1;
const HEADER: usize = 32;

/// The file's content for a machine.
pub fn encode(state: &MachineState) -> Vec<u8> {
    let mut file = vec![0; HEADER];
    // Writing to memory cannot fail, nor can what is encoded.
    let _ = minicbor::encode(state, &mut file);
    let payload = &file[HEADER..];
    let (length, checksum) = (payload.len() as u64, xxh64(payload));
    file[..8].copy_from_slice(&MAGIC);
    file[8..12].copy_from_slice(&VERSION.to_le_bytes());
    file[16..24].copy_from_slice(&length.to_le_bytes());
    file[CHECKSUM..HEADER].copy_from_slice(&checksum.to_le_bytes());
    file
}

/// Where the header says what the checksum is.
const CHECKSUM: usize = 24;

/// The checksum that a file's content has of itself; whether it is right,
/// [`decode`] finds out. All of the header but this is the same for the same
/// payload.
pub fn checksum(file: &[u8]) -> u64 {
    let bytes = file.get(CHECKSUM..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The machine that a file's content describes; `path` is for the message.
///
/// # Errors
/// [`SnapshotError::Foreign`], [`SnapshotError::Newer`],
/// [`SnapshotError::Truncated`], [`SnapshotError::Altered`] or
/// [`SnapshotError::Malformed`].
pub fn decode(file: &[u8], path: &Path) -> Result<MachineState, SnapshotError> {
    let path = || path.to_owned();
    let altered = |how: &str| SnapshotError::Altered {
        path: path(),
        how: how.to_owned(),
    };
    if !file.starts_with(&MAGIC[..file.len().min(MAGIC.len())]) {
        return Err(SnapshotError::Foreign { path: path() });
    }
    let Some((header, payload)) = file.split_first_chunk::<HEADER>() else {
        return Err(SnapshotError::Truncated {
            path: path(),
            found: file.len() as u64,
            expected: HEADER as u64,
        });
    };
    let half = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let word = |at: usize| u64::from(half(at)) | u64::from(half(at + 4)) << 32;
    match half(8) {
        VERSION => {}
        0 => return Err(altered("it has format version 0")),
        version => {
            return Err(SnapshotError::Newer {
                path: path(),
                version,
                known: VERSION,
            });
        }
    }
    let (found, expected) = (payload.len() as u64, word(16));
    if found < expected {
        return Err(SnapshotError::Truncated {
            path: path(),
            found: file.len() as u64,
            expected: expected.saturating_add(HEADER as u64),
        });
    }
    if found > expected {
        return Err(altered("there is something after its end"));
    }
    if half(12) != 0 || xxh64(payload) != checksum(file) {
        return Err(altered("its checksum is not the one that was written"));
    }
    minicbor::decode(payload).map_err(|error| SnapshotError::Malformed {
        path: path(),
        why: error.to_string(),
    })
}

#[cfg(test)]
mod tests;

//! Which of a snapshot's large files were found to be what they should be.
//!
//! Looking at every byte at each restore would cost more than the restore. So
//! whoever has looked notes the files' identities, which change with any write
//! to them: as long as they are the same, nobody need look again.

use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use minicbor::{Decode, Encode};

use super::files::STAMP;

/// Of this format.
const VERSION: u32 = 2;

/// Time stamps of files only advance with the kernel's tick: a write within
/// this time after another may leave none. At most 10 ms (HZ=100).
const TICK: Duration = Duration::from_millis(10);

/// What changes when a file is written to or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(super) struct Identity {
    #[n(0)]
    device: u64,
    #[n(1)]
    inode: u64,
    #[n(2)]
    size: u64,
    #[n(3)]
    modified_ns: i64,
    #[n(4)]
    changed_ns: i64,
}

impl From<&Metadata> for Identity {
    fn from(metadata: &Metadata) -> Self {
        let ns = |seconds: i64, ns: i64| seconds.wrapping_mul(1_000_000_000).wrapping_add(ns);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Files that were found good.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct Stamp {
    #[n(0)]
    version: u32,
    /// The checksum that the state file which they belong to has of itself.
    #[n(1)]
    state: u64,
    /// Their identities, in the order of the state file: memory, disks.
    #[n(2)]
    files: Vec<Identity>,
}

impl Stamp {
    /// That of a snapshot whose state file has this checksum, which was found
    /// to be right, and these large files.
    pub(super) fn new(state: u64, files: Vec<Identity>) -> Self {
        Self {
            version: VERSION,
            state,
            files,
        }
    }

    /// Whether the snapshot in `dir` has this one. Whatever else it has, or
    /// cannot be read, is as if it had none.
    pub(super) fn is_in(&self, dir: &Path) -> bool {
        let (Ok(expected), Ok(mut file)) = (minicbor::to_vec(self), File::open(dir.join(STAMP)))
        else {
            return false;
        };
        // One byte more, to see that it ends.
        let mut found = vec![0; expected.len() + 1];
        let read = file.read(&mut found);
        read.is_ok_and(|count| found[..count] == expected)
    }

    /// Puts it there. The files must have been looked at after
    /// [`Self::settle`]. It is no error if that cannot be: they are looked at
    /// again, then.
    pub(super) fn put(&self, dir: &Path) {
        let temporary = dir.join(format!("{STAMP}.{}", std::process::id()));
        let written = minicbor::to_vec(self)
            .ok()
            .and_then(|bytes| fs::write(&temporary, bytes).ok())
            .and_then(|()| fs::rename(&temporary, dir.join(STAMP)).ok());
        if written.is_none() {
            let _ = fs::remove_file(&temporary);
        }
    }

    /// Waits until a write to one of the files would change its identity.
    pub(super) fn settle(files: &[Identity]) {
        let newest = files.iter().map(|file| file.changed_ns).max().unwrap_or(0);
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let now = now
            .tv_sec
            .wrapping_mul(1_000_000_000)
            .wrapping_add(now.tv_nsec);
        // A file of the future is one that was written to when the clock was
        // wrong: long ago.
        let age = now.wrapping_sub(newest);
        let tick = TICK.as_nanos() as i64;
        if (0..tick).contains(&age) {
            std::thread::sleep(Duration::from_nanos((tick - age) as u64));
        }
    }
}

/// Identity of an open file.
pub(super) fn identity(file: &File) -> std::io::Result<Identity> {
    Ok(Identity::from(&file.metadata()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_stamp_is_good_for_unchanged_files_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        fs::write(&path, "content").unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let stamp = || Stamp::new(1, vec![identity(&file).unwrap()]);
        assert!(!stamp().is_in(dir.path()));
        Stamp::settle(&[identity(&file).unwrap()]);
        stamp().put(dir.path());
        assert!(stamp().is_in(dir.path()));
        assert!(!Stamp::new(2, vec![identity(&file).unwrap()]).is_in(dir.path()));
        // The same length, at once.
        file.write_all_at(b"x", 0).unwrap();
        assert!(!stamp().is_in(dir.path()));
    }

    #[test]
    fn damage_is_no_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let stamp = Stamp::new(1, Vec::new());
        stamp.put(dir.path());
        let path = dir.path().join(STAMP);
        let mut bytes = fs::read(&path).unwrap();
        bytes[1] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(!stamp.is_in(dir.path()));
    }
}

//! A lock between processes that goes away with its holder.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Error, IoContext, Result};

/// An exclusive `flock(2)`, released when this is dropped or the process dies.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Creates `path` if need be and waits for its lock; `waiting` is called once
    /// if it is taken.
    pub(super) fn take(path: &Path, waiting: impl FnOnce()) -> Result<Self> {
        if let Some(lock) = Self::try_take(path)? {
            return Ok(lock);
        }
        waiting();
        loop {
            let lock = Self::open(path)?;
            match flock(&lock.file, FlockOperation::LockExclusive) {
                Ok(()) if lock.is_at(path) => return Ok(lock),
                Ok(()) | Err(Errno::INTR) => {}
                Err(e) => return Err(Error::from_errno("lock", path, e)),
            }
        }
    }

    /// Takes the lock only if nobody holds it.
    pub(super) fn try_take(path: &Path) -> Result<Option<Self>> {
        loop {
            let lock = Self::open(path)?;
            match flock(&lock.file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if lock.is_at(path) => return Ok(Some(lock)),
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(e) => return Err(Error::from_errno("lock", path, e)),
            }
        }
    }

    /// The lock as a program's standard input, which reads as empty: should this
    /// process die, the lock is held until that program has ended too.
    pub(crate) fn as_stdin(&self) -> std::io::Result<std::process::Stdio> {
        Ok(self.file.try_clone()?.into())
    }

    fn open(path: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .at("create the lock file", path)?;
        Ok(Self { file })
    }

    /// Whether the file is still the one that others find: its holder may have
    /// removed it (as pruning does) while we waited.
    fn is_at(&self, path: &Path) -> bool {
        let (Ok(ours), Ok(theirs)) = (self.file.metadata(), fs::metadata(path)) else {
            return false;
        };
        (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino())
    }
}

//! A lock between processes that goes away with its holder.

use std::fs::File;
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
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .at("create the lock file", path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Self { file }),
            Err(Errno::WOULDBLOCK) => waiting(),
            Err(e) => return Err(Error::from_errno("lock", path, e)),
        }
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self { file }),
                Err(Errno::INTR) => {}
                Err(e) => return Err(Error::from_errno("lock", path, e)),
            }
        }
    }

    /// The lock as a program's standard input, which reads as empty: should this
    /// process die, the lock is held until that program has ended too.
    pub(crate) fn as_stdin(&self) -> std::io::Result<std::process::Stdio> {
        Ok(self.file.try_clone()?.into())
    }

    /// Takes the lock only if nobody holds it.
    pub(super) fn try_take(path: &Path) -> Result<Option<Self>> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .at("create the lock file", path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(Error::from_errno("lock", path, e)),
        }
    }
}

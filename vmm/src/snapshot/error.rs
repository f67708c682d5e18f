//! Why a snapshot cannot be taken or used.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::cpu::CpuMismatch;
use super::state::SnapshotId;
use crate::kvm::KvmError;
use crate::memory::MemoryError;
use crate::vcpu::VcpuStateError;

/// Why a snapshot cannot be taken or used.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// A file.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk is full.
    #[error(
        "no room for the snapshot: cannot {what} {path}: {source}; nothing of it was left, free \
         some space and try again", path = path.display()
    )]
    NoRoom {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Whoever asked for it went away before it was complete.
    #[error(
        "the snapshot {path} was given up: whoever asked for it is gone; what was there before \
         is there still", path = path.display()
    )]
    Unwanted {
        /// Where it would have been.
        path: PathBuf,
    },
    /// The directory has something else in it.
    #[error(
        "{path} is there and is no snapshot: name another directory, or remove it",
        path = path.display()
    )]
    Occupied {
        /// The directory.
        path: PathBuf,
    },
    /// There is no snapshot.
    #[error("{path} is no snapshot: it has no file named state", path = path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// Not a state file.
    #[error(
        "{path} is not the state of a snapshot: it does not begin like one; was it made by \
         another program?", path = path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A state file of the future.
    #[error(
        "{path} has format version {version}, but this program reads up to version {known}: \
         restore it with the program that took it, or a newer one", path = path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
        /// What we read.
        known: u32,
    },
    /// It ends too early.
    #[error(
        "{path} is truncated: {found} bytes of {expected}; was it copied completely? Copy it \
         again, or take the snapshot anew", path = path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// How long it is.
        found: u64,
        /// How long it should be.
        expected: u64,
    },
    /// It is not what was written.
    #[error(
        "{path} was altered after the snapshot was taken: {how}; take the snapshot anew, or copy \
         the file again from where it came", path = path.display()
    )]
    Altered {
        /// The file.
        path: PathBuf,
        /// How that shows.
        how: String,
    },
    /// Its checksum is right, but its content makes no sense.
    #[error(
        "{path} cannot be read: {why}; it was taken by a program unlike this one: take the \
         snapshot anew", path = path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A device that this program has not.
    #[error(
        "the snapshot has a device {kind:?} ({id}), which this program does not know: restore it \
         with the program that took it"
    )]
    UnknownDevice {
        /// What it is.
        kind: String,
        /// Which.
        id: String,
    },
    /// A device's state of the future.
    #[error(
        "the snapshot's device {kind:?} ({id}) has state version {version}, but this program \
         reads up to version {known}: restore it with the program that took it"
    )]
    NewerDevice {
        /// What it is.
        kind: String,
        /// Which.
        id: String,
        /// Its version.
        version: u32,
        /// What we read.
        known: u32,
    },
    /// The parent is another one now.
    #[error(
        "{path} is a change of snapshot {expected}, but {parent} holds {found}: put the original \
         back there, or take a full snapshot",
        path = path.display(), parent = parent.display()
    )]
    WrongParent {
        /// The snapshot.
        path: PathBuf,
        /// Where its parent should be.
        parent: PathBuf,
        /// What it is a change of.
        expected: SnapshotId,
        /// What is there.
        found: SnapshotId,
    },
    /// A change would take the place of what it is a change of.
    #[error(
        "an incremental snapshot cannot replace {path}, which it is based on: name another \
         directory, or take a full snapshot", path = path.display()
    )]
    ReplacesParent {
        /// The directory.
        path: PathBuf,
    },
    /// Snapshots on top of snapshots, without end.
    #[error(
        "{path} lies on top of more than {limit} other snapshots: take a full one",
        path = path.display()
    )]
    TooManyLayers {
        /// The snapshot.
        path: PathBuf,
        /// How many may be below it.
        limit: usize,
    },
    /// The host's processor.
    #[error(transparent)]
    Cpu(#[from] CpuMismatch),
    /// A virtual processor.
    #[error(transparent)]
    Vcpu(#[from] VcpuStateError),
    /// Interrupt controllers, timer or clock.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The guest's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl SnapshotError {
    /// For `map_err` on what was tried with a file.
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::NoRoom { what, path, source },
            _ => Self::Io { what, path, source },
        }
    }

    /// The same for a system call through `rustix`.
    pub(super) fn errno(what: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> Self {
        let failed = Self::io(what, path);
        move |error| failed(error.into())
    }
}

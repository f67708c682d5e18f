//! Holding processes still, where they are: the freezer of control groups.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{Errno, pread, write};

/// The processes of a cgroup and of all below it, to be held as long as
/// somebody wants. They can be killed meanwhile; what a cgroup below holds by
/// itself stays held afterwards.
#[derive(Debug)]
pub(crate) struct Freezer {
    switch: OwnedFd,
    events: OwnedFd,
}

impl Freezer {
    /// For the cgroup whose directory is `cgroup`; not the hierarchy's root,
    /// which cannot be held.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn new(cgroup: impl AsFd) -> Result<Self, Errno> {
        let open =
            |file: &str, access| openat(&cgroup, file, access | OFlags::CLOEXEC, Mode::empty());
        Ok(Self {
            switch: open("cgroup.freeze", OFlags::WRONLY)?,
            events: open("cgroup.events", OFlags::RDONLY)?,
        })
    }

    /// Begins to hold them: each stops at its next return from the kernel.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn freeze(&self) -> Result<(), Errno> {
        write(&self.switch, b"1").map(drop)
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn thaw(&self) -> Result<(), Errno> {
        write(&self.switch, b"0").map(drop)
    }

    /// Whether all of them are held.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn is_frozen(&self) -> Result<bool, Errno> {
        let mut text = [0; 128];
        let count = pread(&self.events, &mut text, 0)?;
        let text = text.get(..count).unwrap_or_default();
        Ok(text
            .split(|byte| *byte == b'\n')
            .any(|line| line == b"frozen 1"))
    }

    /// Has `EPOLLPRI` when [`Self::is_frozen`] may have changed since it was
    /// asked last.
    pub(crate) fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

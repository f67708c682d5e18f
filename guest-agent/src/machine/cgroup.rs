//! The cgroup of processes outside of all VPSs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, mkdir, openat};
use rustix::io::Errno;

use crate::protocol::{Code, Failure};

/// A cgroup for machine sessions, so that they can be held for a snapshot.
/// Made for the first of them.
#[derive(Debug)]
pub struct SessionCgroup {
    path: PathBuf,
    made: Option<OwnedFd>,
}

impl SessionCgroup {
    /// To be made as `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path, made: None }
    }

    /// The cgroup, where there has been a session.
    pub(crate) fn made(&self) -> Option<BorrowedFd<'_>> {
        self.made.as_ref().map(AsFd::as_fd)
    }

    /// The cgroup, for one more session.
    pub(crate) fn make(&mut self) -> Result<(), Failure> {
        if self.made.is_none() {
            self.made = Some(self.try_make().map_err(|errno| Failure {
                code: Code::Internal,
                message: format!("cannot make cgroup {}: {errno}", self.path.display()),
                errno: Some(errno.raw_os_error()),
            })?);
        }
        Ok(())
    }

    fn try_make(&self) -> Result<OwnedFd, Errno> {
        match mkdir(&self.path, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, &self.path, flags, Mode::empty())
    }
}

//! Profiles of guests: of their boot, or taken while they run.

use std::fs;
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::error::GuestError;
use super::process::timespec;
use super::rundir::GuestDir;
use crate::vcpu::Profile;

/// How long the machine process may take to hand a profile over.
const PATIENCE: Duration = Duration::from_secs(10);

impl GuestDir {
    /// The profile of the guest's boot; none if it was started without.
    ///
    /// # Errors
    /// [`GuestError::Io`] for one that can't be read.
    pub fn boot_profile(&self) -> Result<Option<Profile>, GuestError> {
        let path = self.profile_path();
        if !path.exists() {
            return Ok(None);
        }
        let failed = |source| GuestError::io("read the profile", &path, source);
        let bytes = fs::read(&path).map_err(failed)?;
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| failed(error.into()))
    }

    /// Samples the guest's processors for so long. A byte to read on
    /// `interrupt` ends it early.
    ///
    /// # Errors
    /// [`GuestError::ProfileInUse`] when somebody else does,
    /// [`GuestError::Io`] when the machine process does not answer.
    pub fn profile(
        &self,
        duration: Duration,
        interrupt: Option<BorrowedFd<'_>>,
    ) -> Result<Profile, GuestError> {
        let path = self.profile_socket_path();
        let failed = |source| GuestError::io("profile by", &path, source);
        let mut stream = UnixStream::connect(&path).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        wait(duration, stream.as_fd(), interrupt).map_err(|error| failed(error.into()))?;
        // One that was refused is closed from the other end.
        let _ = stream.shutdown(Shutdown::Write);
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).map_err(failed)?;
        if bytes.is_empty() {
            return Err(GuestError::ProfileInUse {
                name: self.name().clone(),
            });
        }
        serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
    }
}

/// Waits until the time is over, or either has something to read.
fn wait(
    duration: Duration,
    stream: BorrowedFd<'_>,
    interrupt: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let end = Instant::now() + duration;
    let mut fds = vec![PollFd::from_borrowed_fd(stream, PollFlags::IN)];
    fds.extend(interrupt.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

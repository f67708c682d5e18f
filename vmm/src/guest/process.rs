//! Finding and ending a guest's process.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The process that serves the guest in `dir`: the one whose arguments say so.
/// `hint` is looked at first; a number alone proves nothing, since numbers are
/// used again.
pub(super) fn find(dir: &Path, hint: Option<u32>) -> Option<u32> {
    if let Some(pid) = hint.filter(|pid| serves(*pid, dir)) {
        return Some(pid);
    }
    fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .find(|pid| serves(*pid, dir))
}

/// Whether the process' arguments are `insula-vmm … --dir DIR …`.
fn serves(pid: u32, dir: &Path) -> bool {
    let Ok(arguments) = fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    let mut arguments = arguments.split(|byte| *byte == 0).skip(1);
    arguments.any(|argument| argument == b"--dir")
        && arguments.next() == Some(dir.as_os_str().as_bytes())
}

/// A process that can't be mistaken for another one.
#[derive(Debug)]
pub(super) struct Process {
    pidfd: OwnedFd,
}

impl Process {
    /// The process `pid`, if it (still) serves the guest in `dir`.
    pub(super) fn open(pid: u32, dir: &Path) -> Option<Self> {
        let raw = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty()).ok()?;
        // Asked after the descriptor was taken: from here on it is this one.
        serves(pid, dir).then_some(Self { pidfd })
    }

    /// Sends a signal. A process that is gone already is as good as signalled.
    pub(super) fn signal(&self, signal: Signal) {
        // Fails only for a process that has ended: it is our own.
        let _gone = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Waits for its end. Returns whether it has ended.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match poll(&mut fds, Some(&timespec(left))) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

/// A duration as the system wants it.
pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_serves_nothing() {
        assert!(!serves(std::process::id(), Path::new("/run/insula/main")));
        assert!(find(Path::new("/nonexistent/guest"), Some(1)).is_none());
    }
}

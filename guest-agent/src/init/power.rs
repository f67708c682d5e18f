//! The end of a guest.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::sync;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use rustix::system::{RebootCommand, reboot};

use super::mounts::DATA;
use crate::protocol::{Frame, Goodbye, GoodbyeReason, Message};
use crate::server::log;
use crate::sys;

/// How long the host may take to hang up after the goodbye. It does so at
/// once; this is for one that is gone.
const FAREWELL_MS: i64 = 500;

/// Powers the guest off. All VPSs are down, and nothing holds the data disk.
///
/// This is the only place that calls `reboot`. It must be reached by PID 1
/// of the guest alone: in a process that has entered a VPS it would still
/// end the guest.
pub(super) fn off(line: Option<OwnedFd>, reason: GoodbyeReason) -> ! {
    // What is left are processes of machine sessions.
    let _ = sys::kill(-1, libc::SIGKILL);
    while rustix::process::wait(rustix::process::WaitOptions::empty()).is_ok() {}
    sync();
    if unmount(DATA, UnmountFlags::NOFOLLOW).is_err() {
        // Busy, or never mounted.
        let _ = mount_remount(DATA, MountFlags::RDONLY, "");
    }
    if let Some(line) = line {
        say_goodbye(&line, reason);
    }
    let error = reboot(RebootCommand::Restart);
    log(&format!("cannot power off: {error:?}"));
    // The end of PID 1 is a kernel panic: an end, too.
    sys::exit_now(1)
}

fn say_goodbye(line: &OwnedFd, reason: GoodbyeReason) {
    let bytes = Frame::new(0, Message::Goodbye(Goodbye { reason })).to_bytes();
    if send(line, &bytes, SendFlags::NOSIGNAL).is_err() || shutdown(line, Shutdown::Write).is_err()
    {
        // Nobody listens any more.
        return;
    }
    // The host hangs up when it has heard it.
    let limit = Timespec {
        tv_sec: 0,
        tv_nsec: FAREWELL_MS * 1_000_000,
    };
    let _ = poll(&mut [PollFd::new(line, PollFlags::IN)], Some(&limit));
}

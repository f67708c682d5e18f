//! Signals as bytes of a pipe, while a session is attached.

use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

/// The pipe's writing end; -1 while nobody listens. It is never closed once
/// made, so that a handler that runs late writes to a pipe and not to a
/// stranger's descriptor.
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// The previous dispositions, restored on drop.
pub(super) struct Signals {
    read: OwnedFd,
    before: Vec<(i32, libc::sigaction)>,
}

extern "C" fn note(signal: i32) {
    let fd = PIPE.load(Ordering::Relaxed);
    let byte = signal as u8;
    // SAFETY: `write` and `__errno_location` are async-signal-safe; the byte
    // outlives the call; errno is put back for the code that was interrupted.
    unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        libc::write(fd, (&raw const byte).cast(), 1);
        *errno = saved;
    }
}

impl Signals {
    /// Routes `signals` here. Only one at a time can do so in a process.
    pub(super) fn route(signals: &[i32]) -> Result<Self, Errno> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let previous = PIPE.swap(write.into_raw_fd(), Ordering::Relaxed);
        if previous >= 0 {
            // The last session's pipe: its handlers are gone by now.
            // SAFETY: `previous` came from `into_raw_fd` above and nobody else has it.
            drop(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(previous) });
        }
        let mut routed = Self {
            read,
            before: Vec::new(),
        };
        for &signal in signals {
            // SAFETY: all-zero is a valid `sigaction`; `note` is async-signal-safe
            // and has the handler's signature; both structures outlive the call.
            let before = unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = note as *const () as usize;
                let mut before: libc::sigaction = std::mem::zeroed();
                if libc::sigaction(signal, &raw const action, &raw mut before) != 0 {
                    continue;
                }
                before
            };
            routed.before.push((signal, before));
        }
        Ok(routed)
    }

    /// The next signal that has come.
    pub(super) fn take(&self) -> Option<i32> {
        let mut byte = [0];
        match rustix::io::read(&self.read, &mut byte) {
            Ok(1) => Some(i32::from(byte[0])),
            _ => None,
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for (signal, before) in &self.before {
            // SAFETY: `before` is what `sigaction` returned for this signal.
            unsafe { libc::sigaction(*signal, before, std::ptr::null_mut()) };
        }
    }
}

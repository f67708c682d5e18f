//! Signals that end a machine, as a file descriptor.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use vmm_sys_util::signal::create_sigset;

/// What asks a process to end.
const ENDING: [libc::c_int; 3] = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM];

/// Signals that ask this process to end, blocked and read from a descriptor.
#[derive(Debug)]
pub(super) struct EndingSignals(File);

impl EndingSignals {
    /// Blocks them for this thread and all that it spawns from now on.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn take() -> io::Result<Self> {
        let set = create_sigset(&ENDING).map_err(io::Error::from)?;
        // SAFETY: the set is initialized, and the old one is not asked for.
        let blocked =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        // SAFETY: -1 asks for a new descriptor, and the set is initialized.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and belongs to nobody else.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// The next signal that arrived, if one did.
    pub(super) fn next(&self) -> Option<u8> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        (&self.0).read_exact(&mut info).ok()?;
        // `ssi_signo` comes first (signalfd(2)).
        let number = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
        u8::try_from(number).ok()
    }
}

impl AsRawFd for EndingSignals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

//! Ctrl-C and its kind, while there is something to clean up.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use vmm_sys_util::signal::register_signal_handler;

use crate::failure::Failure;

/// The signal that came first; 0 while none did.
static CAME: AtomicU8 = AtomicU8::new(0);
/// Gets a byte when a signal comes.
static PIPE: OnceLock<(PipeReader, PipeWriter)> = OnceLock::new();

/// From its making on, `SIGINT`, `SIGTERM` and `SIGHUP` do not end this
/// process any more but are noted, so that what has been made can be cleaned
/// up. Made just before the first thing that needs it: until then, a signal
/// ends the process as it always does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Interrupt(&'static PipeReader);

extern "C" fn note(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // Both are async-signal-safe: an atomic exchange and a `write`.
    let _ = CAME.compare_exchange(0, signal as u8, Ordering::AcqRel, Ordering::Acquire);
    if let Some((_, writer)) = PIPE.get() {
        // A full pipe is as good as another byte in it.
        let _ = rustix::io::write(writer, &[0]);
    }
}

impl Interrupt {
    /// Notes signals from now on.
    pub(crate) fn catch() -> Result<Self, Failure> {
        let failed =
            |error: io::Error| Failure::new(format!("cannot take care of signals: {error}"));
        if PIPE.get().is_none() {
            let pipe = io::pipe().map_err(failed)?;
            rustix::io::ioctl_fionbio(&pipe.1, true).map_err(|error| failed(error.into()))?;
            // Only the main thread comes here; if somebody was faster, theirs is as good.
            let _ = PIPE.set(pipe);
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                register_signal_handler(signal, note)
                    .map_err(|error| failed(io::Error::from_raw_os_error(error.errno())))?;
            }
        }
        match PIPE.get() {
            Some((reader, _)) => Ok(Self(reader)),
            None => Err(failed(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Readable when a signal has come.
    pub(crate) fn fd(self) -> BorrowedFd<'static> {
        self.0.as_fd()
    }

    /// A failure when a signal has come. It can only be asked of one that
    /// catches them.
    #[allow(clippy::unused_self)]
    pub(crate) fn check(self) -> Result<(), Failure> {
        match CAME.load(Ordering::Acquire) {
            0 => Ok(()),
            signal => Err(Failure::interrupted(signal)),
        }
    }
}

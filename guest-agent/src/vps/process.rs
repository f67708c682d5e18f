//! A process that the engine started, or tried to.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::Error;
use super::handshake::Outcome;
use super::step::Step;

/// A process in a VPS; a direct child of the caller.
#[derive(Debug)]
pub struct Process {
    /// Its PID as the caller sees it.
    pub pid: i32,
    /// Becomes readable when it ends.
    pub pidfd: OwnedFd,
    /// The master side of its terminal, when it has one of its own. Keep it
    /// open: closing it hangs the terminal up.
    pub terminal: Option<OwnedFd>,
}

/// Turns what a new process reported into a process, or its error. `place`:
/// where it was to be, in words.
pub(super) fn settle(
    place: &str,
    program: &str,
    outcome: &Result<Outcome, Errno>,
    process: Process,
) -> Result<Process, Error> {
    let failure = match outcome {
        Ok(Outcome { failure: None, .. }) => return Ok(process),
        Ok(Outcome {
            failure: Some(failure),
            ..
        }) => *failure,
        Err(errno) => (Step::Unknown, *errno),
    };
    reap(&process);
    let (place, program) = (place.to_owned(), program.to_owned());
    Err(match failure {
        (Step::Exec, Errno::NOENT | Errno::NOTDIR) => Error::CommandNotFound { place, program },
        (Step::Exec, errno) => Error::CommandNotExecutable {
            place,
            program,
            errno,
        },
        (step, errno) => Error::Child {
            place,
            step,
            subject: String::new(),
            errno,
        },
    })
}

/// Waits for a process that ends by itself, or has.
pub(super) fn reap(process: &Process) {
    let id = WaitId::PidFd(process.pidfd.as_fd());
    // An error means that there is nothing to reap.
    let _ = rustix::io::retry_on_intr(|| waitid(id.clone(), WaitIdOptions::EXITED));
}

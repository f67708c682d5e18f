//! What engine and new process say to each other, over a pair of sockets that
//! `execve` closes: the engine says "go" once; the process reports its
//! failure, or nothing: the end of the stream is success.

use std::os::fd::OwnedFd;

use rustix::io::{Errno, read, retry_on_intr, write};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::raw;
use super::step::Step;

/// Bytes of a report: what, and a number.
const REPORT: usize = 5;
/// First byte of the report that carries a PID.
const PID: u8 = 0xff;

/// The engine's end.
#[derive(Debug)]
pub(crate) struct Engine(OwnedFd);

/// The new process's end.
#[derive(Debug)]
pub(crate) struct Newcomer(OwnedFd);

/// All that a new process reported before its end of the stream was closed.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// The PID of the process that was started in its stead.
    pub(crate) pid: Option<i32>,
    /// Where it failed.
    pub(crate) failure: Option<(Step, Errno)>,
}

/// Makes both ends.
pub(crate) fn pair() -> Result<(Engine, Newcomer), Errno> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok((Engine(ours), Newcomer(theirs)))
}

impl Engine {
    /// Lets the new process go on. When it is gone already, [`Self::outcome`]
    /// says why.
    pub(crate) fn go(&self) {
        let _ = rustix::net::send(&self.0, &[1], rustix::net::SendFlags::NOSIGNAL);
    }

    /// Waits until the new process has executed its program, or failed.
    pub(crate) fn outcome(self) -> Result<Outcome, Errno> {
        let mut bytes = Vec::new();
        let mut part = [0u8; 4 * REPORT];
        loop {
            match retry_on_intr(|| read(&self.0, &mut part))? {
                0 => return Ok(Outcome::parse(&bytes)),
                n => bytes.extend_from_slice(part.get(..n).unwrap_or_default()),
            }
            // Two reports are all that there can be.
            if bytes.len() > 2 * REPORT {
                return Err(Errno::PROTO);
            }
        }
    }
}

impl Outcome {
    fn parse(bytes: &[u8]) -> Self {
        let mut outcome = Self::default();
        for report in bytes.chunks_exact(REPORT) {
            let &[what, a, b, c, d] = report else {
                continue;
            };
            let number = i32::from_le_bytes([a, b, c, d]);
            if what == PID {
                outcome.pid = Some(number);
            } else {
                outcome.failure = Some((
                    Step::from_code(what),
                    Errno::from_raw_os_error(number.clamp(1, 4095)),
                ));
            }
        }
        outcome
    }
}

impl Newcomer {
    /// Waits for [`Engine::go`].
    pub(crate) fn wait(&self) -> Result<(), Errno> {
        match retry_on_intr(|| read(&self.0, &mut [0u8; 1]))? {
            0 => Err(Errno::PIPE),
            _ => Ok(()),
        }
    }

    /// Reports the PID of the process that goes on.
    pub(crate) fn report_pid(&self, pid: i32) {
        self.report(PID, pid);
    }

    /// Reports a failure and ends the process.
    pub(crate) fn fail(&self, step: Step, errno: Errno) -> ! {
        self.report(step as u8, errno.raw_os_error());
        raw::exit_now(125)
    }

    fn report(&self, what: u8, number: i32) {
        let [a, b, c, d] = number.to_le_bytes();
        // Nobody is left to be told when this fails.
        let _ = write(&self.0, &[what, a, b, c, d]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_success_and_reports_arrive_in_any_order() {
        let (engine, newcomer) = pair().unwrap();
        engine.go();
        newcomer.wait().unwrap();
        newcomer.report(Step::Exec as u8, libc::ENOENT);
        newcomer.report_pid(77);
        drop(newcomer);
        let expected = Outcome {
            pid: Some(77),
            failure: Some((Step::Exec, Errno::NOENT)),
        };
        assert_eq!(engine.outcome().unwrap(), expected);

        let (engine, newcomer) = pair().unwrap();
        drop(newcomer);
        assert_eq!(engine.outcome().unwrap(), Outcome::default());
        let (engine, newcomer) = pair().unwrap();
        drop(engine);
        assert_eq!(newcomer.wait(), Err(Errno::PIPE));
    }

    #[test]
    fn garbage_from_a_broken_process_is_survived() {
        assert_eq!(
            Outcome::parse(&[200, 255, 255, 255, 255])
                .failure
                .unwrap()
                .0,
            Step::Unknown
        );
        assert_eq!(Outcome::parse(&[1, 2]), Outcome::default());
    }
}

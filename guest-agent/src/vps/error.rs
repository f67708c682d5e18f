//! What can go wrong between a VPS's definition and its first instruction.

use rustix::io::Errno;
use thiserror::Error;

use super::step::Step;
use crate::protocol::Exec;

/// Why an operation of the engine failed.
#[derive(Debug, Error)]
pub enum Error {
    /// A system call of the engine's own failed.
    #[error("cannot {op} {subject}: {errno}")]
    System {
        /// What was tried, as a verb phrase.
        op: &'static str,
        /// With which file, VPS or process.
        subject: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The new process could not make itself a home.
    #[error("cannot start a process in {place}: {step}{subject}: {errno}{}", step.hint(*errno))]
    Child {
        /// Where: "VPS web", "the machine".
        place: String,
        /// How far it came.
        step: Step,
        /// With which user or directory, after a space; or nothing.
        subject: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The program is not there.
    #[error("{program}: not found in {place}; give the name or the path of a program there")]
    CommandNotFound {
        /// Where.
        place: String,
        /// What was to be executed.
        program: String,
    },
    /// The program is there, but cannot be executed.
    #[error("{program}: cannot be executed in {place}: {errno}")]
    CommandNotExecutable {
        /// Where.
        place: String,
        /// What was to be executed.
        program: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A request that makes no sense, whatever the state of the system.
    #[error("{0}")]
    Invalid(String),
    /// Nothing is left of something finite.
    #[error("{0}")]
    Exhausted(String),
}

impl Error {
    /// For `map_err`: `op` on `subject` failed.
    pub(crate) fn system(
        op: &'static str,
        subject: impl Into<String>,
    ) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::System {
            op,
            subject: subject.into(),
            errno,
        }
    }

    /// As [`Self::system`], for errors of the standard library.
    pub(crate) fn io(
        op: &'static str,
        subject: impl Into<String>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::System {
            op,
            subject: subject.into(),
            errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        }
    }

    /// Says which user or directory of `exec` a new process could not have.
    pub(crate) fn about(self, exec: &Exec) -> Self {
        let wanted = |step: Step| match step {
            Step::User => exec.user.as_ref(),
            Step::WorkingDirectory => exec.cwd.as_ref(),
            _ => None,
        };
        match self {
            Self::Child {
                place,
                step,
                subject,
                errno,
            } => Self::Child {
                place,
                step,
                subject: wanted(step).map_or(subject, |text| format!(" {text:?}")),
                errno,
            },
            error => error,
        }
    }

    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::System { errno, .. }
            | Self::Child { errno, .. }
            | Self::CommandNotExecutable { errno, .. } => Some(errno.raw_os_error()),
            Self::CommandNotFound { .. } => Some(Errno::NOENT.raw_os_error()),
            Self::Invalid(_) | Self::Exhausted(_) => None,
        }
    }

    /// What a shell reports for a command that failed so: 127 not found, 126
    /// not executable, 125 when it never came that far.
    pub fn shell_code(&self) -> u8 {
        match self {
            Self::CommandNotFound { .. } => 127,
            Self::CommandNotExecutable { .. } => 126,
            _ => 125,
        }
    }
}

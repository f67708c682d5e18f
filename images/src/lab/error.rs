//! What can go wrong with the lab.

use std::path::PathBuf;
use std::time::Duration;

use guest_agent::client::ClientError;
use guest_agent::protocol::Code;

/// Why the lab could not be started or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// The host's image could not be built, or a file of the lab not written.
    #[error(transparent)]
    Image(#[from] crate::Error),

    /// The lab's daemon refused or failed.
    #[error(transparent)]
    Daemon(#[from] ClientError),

    /// Too little memory for the emulated host.
    #[error(
        "the lab needs {wanted_mib} MiB of memory and {available_mib} MiB are available; \
         end other programs, or choose less with INSULA_LAB_MEMORY (MiB, at least {least_mib})"
    )]
    Memory {
        /// What the emulated host would get.
        wanted_mib: u32,
        /// `MemAvailable`.
        available_mib: u64,
        /// The least that makes sense.
        least_mib: u32,
    },

    /// Too little room in the cache's file system.
    #[error(
        "the lab needs {wanted_mib} MiB of disk space at {} and there are {available_mib} MiB; \
         free some ('insula image prune'), or set INSULA_CACHE to a directory on another disk",
        path.display()
    )]
    Disk {
        /// Where.
        path: PathBuf,
        /// What is needed.
        wanted_mib: u64,
        /// What there is.
        available_mib: u64,
    },

    /// A variable of the environment has no usable value.
    #[error("{name}={value} is not usable: {wanted}")]
    Variable {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        wanted: String,
    },

    /// QEMU ended before the lab was up.
    #[error("QEMU ended while the lab {while_what}; it said:\n{log}")]
    Qemu {
        /// What was going on.
        while_what: &'static str,
        /// The last lines of QEMU and of the emulated host's console.
        log: String,
    },

    /// QEMU's monitor did not do what it was asked.
    #[error("QEMU's monitor at {} failed at '{command}': {reason}", socket.display())]
    Monitor {
        /// The monitor's socket.
        socket: PathBuf,
        /// What it was asked.
        command: String,
        /// What it answered, or why there is no answer.
        reason: String,
    },

    /// The emulated host did not come up.
    #[error(
        "the lab did not come up within {} s ({reason}); its last words:\n{log}",
        within.as_secs()
    )]
    NotUp {
        /// How long was waited.
        within: Duration,
        /// Why its daemon could not be reached.
        reason: String,
        /// The last lines of QEMU and of the emulated host's console.
        log: String,
    },

    /// The lab ended while it was in use.
    #[error(
        "the lab ended while it was in use ({cause}); what ran in it is lost, and the next \
         command starts it again. Its last words (all of them in {}, then in {}):\n{log}",
        console.display(), kept.display()
    )]
    Died {
        /// What was noticed.
        cause: String,
        /// The emulated host's console, until the next start.
        console: PathBuf,
        /// The same file from then on.
        kept: PathBuf,
        /// The last lines of QEMU and of the emulated host's console.
        log: String,
    },

    /// Another lab process holds a lock for too long.
    #[error(
        "another program has been {what} for {} s; if it hangs, end it, or run \
         'insula lab stop'", waited.as_secs()
    )]
    Busy {
        /// What it is doing.
        what: &'static str,
        /// How long was waited.
        waited: Duration,
    },

    /// Something asked for can't be sent into the lab.
    #[error("cannot bring {} into the lab: {reason}", path.display())]
    Payload {
        /// The local file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },

    /// A command of ours failed in the lab.
    #[error("in the lab, {what} failed with exit code {code}: {output}")]
    Inside {
        /// What was being done.
        what: &'static str,
        /// Its exit code.
        code: u8,
        /// What it printed.
        output: String,
    },
}

/// What this module returns.
pub type Result<T, E = LabError> = std::result::Result<T, E>;

impl LabError {
    /// The exit code of a command that stands for a command in the lab, as
    /// shells and `env` have it: 127 when there is no such command, 126 when
    /// it cannot be executed, 125 for failures of the lab itself.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Daemon(ClientError::Agent(failure)) => match failure.code {
                Code::CommandNotFound => 127,
                Code::CommandNotExecutable => 126,
                _ => 125,
            },
            _ => 125,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_agent::protocol::Failure;

    #[test]
    fn a_missing_command_is_told_from_a_broken_lab() {
        let of = |code| {
            let failure = Failure {
                code,
                message: String::new(),
                errno: None,
            };
            LabError::from(ClientError::Agent(failure)).exit_code()
        };
        assert_eq!(of(Code::CommandNotFound), 127);
        assert_eq!(of(Code::CommandNotExecutable), 126);
        assert_eq!(of(Code::Internal), 125);
        assert_eq!(
            LabError::Busy {
                what: "x",
                waited: Duration::ZERO
            }
            .exit_code(),
            125
        );
    }
}

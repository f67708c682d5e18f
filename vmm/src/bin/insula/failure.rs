//! How a command fails.

use std::fmt;

use guest_agent::client::ClientError;
use vmm::control::{ControlError, FailureKind};
use vmm::guest::GuestError;

/// The exit code of a command that did what it could, or why it could not.
pub(crate) type Outcome = Result<u8, Failure>;

/// Why a command failed: a message with its causes, and an exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    error: anyhow::Error,
    code: u8,
}

/// Exit code for whatever has none of its own.
const GENERAL: u8 = 1;
/// Exit code for a wrong command line or configuration file.
const USAGE: u8 = 2;

/// Exit code for a snapshot that cannot be restored.
const BAD_SNAPSHOT: u8 = 25;
/// Exit code for a snapshot that there is no room for.
const NO_ROOM: u8 = 26;

impl Failure {
    /// A failure in one sentence.
    pub(crate) fn new(message: impl fmt::Display) -> Self {
        Self {
            error: anyhow::anyhow!("{message}"),
            code: GENERAL,
        }
    }

    /// What was asked for makes no sense.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self {
            error: anyhow::anyhow!("{message}"),
            code: USAGE,
        }
    }

    /// Ended by a signal.
    pub(crate) fn interrupted(signal: u8) -> Self {
        let error = anyhow::anyhow!("interrupted; nothing is left behind");
        Self {
            error,
            code: 128u8.saturating_add(signal),
        }
    }

    /// The same with another exit code.
    pub(crate) fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        self.code
    }
}

/// Fields of a machine's configuration, which our users never see, and the
/// options that they come from.
const OPTIONS: [(&str, &str); 2] = [("mem_size_mib", "--memory"), ("boot_args", "--cmdline")];

impl fmt::Display for Failure {
    /// The message and its causes, each once: an error that prints its source
    /// as part of its own text is not followed by the source again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut message = self.error.to_string();
        let mut said = message.clone();
        for cause in self.error.chain().skip(1) {
            let cause = cause.to_string();
            if !said.contains(&cause) {
                message.push_str(": ");
                message.push_str(&cause);
                said = cause;
            }
        }
        if self.error.is::<GuestError>() {
            for (field, option) in OPTIONS {
                message = message.replace(field, option);
            }
        }
        f.write_str(&message)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self {
            error,
            code: GENERAL,
        }
    }
}

impl From<images::Error> for Failure {
    fn from(error: images::Error) -> Self {
        Self {
            error: error.into(),
            code: GENERAL,
        }
    }
}

impl From<GuestError> for Failure {
    fn from(error: GuestError) -> Self {
        let code = match &error {
            GuestError::Name(_) | GuestError::Invalid { .. } => USAGE,
            GuestError::Start { failure, .. } => failure.ended.exit_code().max(GENERAL),
            GuestError::Interrupted { .. } => 130,
            GuestError::Snapshot { .. } => BAD_SNAPSHOT,
            GuestError::Control {
                source: ControlError::Refused(refusal),
                ..
            } if refusal.kind == FailureKind::NoSpace => NO_ROOM,
            _ => GENERAL,
        };
        Self {
            error: error.into(),
            code,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let code = error.shell_code().unwrap_or(GENERAL);
        Self {
            error: error.into(),
            code,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_names_options() {
        let failure = Failure::from(GuestError::Invalid {
            name: "main".parse().unwrap(),
            reason: "it does not fit: raise mem_size_mib".to_owned(),
        });
        let expected = "guest main: it does not fit: raise --memory";
        assert_eq!(failure.to_string(), expected);
    }

    #[test]
    fn causes_are_said_once() {
        let io = || std::io::Error::other("no space left");
        let failure = Failure::from(anyhow::Error::from(io()).context("cannot write /x"));
        assert_eq!(failure.to_string(), "cannot write /x: no space left");
        let failure = Failure::from(GuestError::Vmm {
            path: "/v".into(),
            source: io(),
        });
        assert_eq!(failure.to_string().matches("no space left").count(), 1);
    }
}

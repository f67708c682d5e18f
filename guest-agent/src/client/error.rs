//! What can go wrong on the host's side.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::protocol::{Code, Failure, FrameError, MAJOR};

/// Why talking to an agent failed. Each says what was tried, with which
/// endpoint, and what to do.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The endpoint could not be dialled.
    #[error("cannot connect to {endpoint}: {source}; {advice}")]
    Connect {
        /// The endpoint, in words.
        endpoint: String,
        /// The kernel's word.
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// The other end closed the connection.
    #[error(
        "{endpoint} closed the connection while {doing}; the guest or its agent may have ended \
         (see its log)"
    )]
    Closed {
        /// The endpoint, in words.
        endpoint: String,
        /// What was going on.
        doing: &'static str,
    },
    /// No answer came in time.
    #[error("no answer from {endpoint} within {} ms while {doing}", within.as_millis())]
    Timeout {
        /// The endpoint, in words.
        endpoint: String,
        /// What was going on.
        doing: &'static str,
        /// How long was waited.
        within: Duration,
    },
    /// The peers speak different major versions.
    #[error(
        "{endpoint} speaks protocol version {theirs} ({build}), this program speaks {MAJOR}; \
         rebuild the agent's image or use the insula that started it"
    )]
    Version {
        /// The endpoint, in words.
        endpoint: String,
        /// The agent's major version.
        theirs: u16,
        /// The agent's build.
        build: String,
    },
    /// What came is not this protocol.
    #[error("{endpoint} sent what is not a message: {source}")]
    Frame {
        /// The endpoint, in words.
        endpoint: String,
        /// What is wrong with it.
        source: FrameError,
    },
    /// A message came that makes no sense here.
    #[error("{endpoint} answered with message kind {kind} while {doing}; the agent is broken")]
    Unexpected {
        /// The endpoint, in words.
        endpoint: String,
        /// The message's kind byte.
        kind: u8,
        /// What was going on.
        doing: &'static str,
    },
    /// The connection failed.
    #[error("connection to {endpoint} failed while {doing}: {source}")]
    Io {
        /// The endpoint, in words.
        endpoint: String,
        /// What was going on.
        doing: &'static str,
        /// The kernel's word.
        source: io::Error,
    },
    /// The agent refused or failed the request.
    #[error("{}", printable(&.0.message))]
    Agent(Failure),
    /// A local file, terminal or standard stream failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Local {
        /// The verb.
        doing: &'static str,
        /// The file, or what stands for it.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
}

impl ClientError {
    /// The agent's failure code, where the agent answered.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Agent(failure) => Some(failure.code),
            _ => None,
        }
    }

    /// What a shell would return for a command that could not be executed:
    /// 127 not found, 126 not executable; `None` for every other failure.
    pub fn shell_code(&self) -> Option<u8> {
        match self.code()? {
            Code::CommandNotFound => Some(127),
            Code::CommandNotExecutable => Some(126),
            _ => None,
        }
    }
}

/// An agent's text with control characters replaced: it goes to a terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\n' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

//! What can be asked of a machine, and what it answers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::pvm::RepairCounts;
use crate::vcpu::ProcessorCounts;

/// Version of the messages.
pub const VERSION: u32 = 1;

/// One line to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// What is wanted.
    pub operation: Operation,
}

/// What can be asked of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Operation {
    /// How it is.
    Status,
    /// What has been counted of it.
    Counts,
    /// Where its process has the guest's memory.
    Memory,
    /// Stop its processors and devices where they are. Pausing a machine that
    /// is paused changes nothing.
    Pause,
    /// Go on. Resuming a machine that runs changes nothing.
    Resume,
    /// Take a snapshot. A machine that runs is paused for it, and goes on.
    Snapshot {
        /// The directory to make: an absolute path. One that is there already
        /// is replaced once the new one is whole.
        directory: PathBuf,
        /// Write only the pages that changed since the snapshot before.
        #[serde(default)]
        incremental: bool,
        /// Note what changes from now on, so that the next snapshot can be an
        /// incremental one. Every page costs the guest a fault when it is
        /// first written to.
        #[serde(default)]
        track: bool,
        /// Stay paused when the snapshot was taken, for the machine's end. If
        /// it was not taken, a machine that ran goes on.
        #[serde(default)]
        hold: bool,
    },
}

/// One line from a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub version: u32,
    /// What came of it.
    #[serde(flatten)]
    pub result: AnswerResult,
}

/// What came of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnswerResult {
    /// It was done.
    Done(Done),
    /// It was not.
    Error(Failure),
    /// What was asked for.
    Counts(Counts),
    /// Where the guest's memory is, in the machine's process.
    Memory(Vec<AddressRange>),
}

/// Addresses of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRange {
    /// The first.
    pub start: u64,
    /// The first behind it.
    pub end: u64,
}

/// What has been counted of a machine since its process started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// By KVM, of all processors together.
    #[serde(flatten)]
    pub processors: ProcessorCounts,
    /// By the repairs, on a PVM host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repairs: Option<RepairCounts>,
}

/// How the machine is after an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Whether the machine runs.
    pub state: MachineState,
    /// What was written, for a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotWritten>,
}

/// What a snapshot took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotWritten {
    /// Identifies the snapshot: the hash of its state file, in hexadecimal.
    pub id: String,
    /// Bytes of guest memory that were written.
    pub memory_bytes: u64,
    /// Bytes of the state file.
    pub state_bytes: u64,
    /// How long the guest stood still, in nanoseconds.
    pub paused_ns: u64,
}

/// Whether a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineState {
    /// Its processors run.
    Running,
    /// They do not.
    Paused,
}

/// Why an operation was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For programs.
    pub kind: FailureKind,
    /// For people.
    pub message: String,
}

/// Why an operation was not done, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The line is not a request, or of another version.
    BadRequest,
    /// It was tried and failed. The machine is as it was.
    Failed,
    /// There is no room for it. The machine is as it was.
    NoSpace,
    /// What an incremental snapshot would be based on is not there.
    NoParent,
}

impl Answer {
    /// What has been counted.
    pub fn counts(counts: Counts) -> Self {
        Self {
            version: VERSION,
            result: AnswerResult::Counts(counts),
        }
    }

    /// Where the guest's memory is.
    pub fn memory(ranges: Vec<AddressRange>) -> Self {
        Self {
            version: VERSION,
            result: AnswerResult::Memory(ranges),
        }
    }

    /// It was done.
    pub fn done(done: Done) -> Self {
        Self {
            version: VERSION,
            result: AnswerResult::Done(done),
        }
    }

    /// It was not.
    pub fn error(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            version: VERSION,
            result: AnswerResult::Error(Failure {
                kind,
                message: message.into(),
            }),
        }
    }
}

impl Request {
    /// Reads a line.
    ///
    /// # Errors
    /// A [`FailureKind::BadRequest`] that says what is wrong with it.
    pub fn parse(line: &[u8]) -> Result<Self, Failure> {
        /// Looked at first: a newer request may have fields that are unknown
        /// here, and it is the version that should be named then.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let bad = |message: String| Failure {
            kind: FailureKind::BadRequest,
            message,
        };
        let malformed = |error: serde_json::Error| bad(format!("not a request: {error}"));
        let Versioned { version } = serde_json::from_slice(line).map_err(malformed)?;
        if version != VERSION {
            return Err(bad(format!(
                "version {version} of the control protocol is not version {VERSION}, which this \
                 machine speaks: use the insula that started it"
            )));
        }
        serde_json::from_slice(line).map_err(malformed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_read_as_documented() {
        let pause = Request::parse(br#"{"version":1,"operation":"pause"}"#).unwrap();
        assert_eq!(pause.operation, Operation::Pause);
        let line = br#"{"version":1,"operation":{"snapshot":{"directory":"/s"}}}"#;
        let snapshot = Operation::Snapshot {
            directory: "/s".into(),
            incremental: false,
            track: false,
            hold: false,
        };
        assert_eq!(Request::parse(line).unwrap().operation, snapshot);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, expected) in [
            (
                &b"{\"version\":2,\"operation\":\"fly\",\"how\":1}"[..],
                "version 2",
            ),
            (b"{\"version\":1,\"operation\":\"fly\"}", "fly"),
            (b"{\"version\":1,\"operation\":\"pause\",\"x\":1}", "x"),
            (b"{\"operation\":\"pause\"}", "version"),
            (b"\xff", "not a request"),
        ] {
            let failure = Request::parse(line).unwrap_err();
            assert_eq!(failure.kind, FailureKind::BadRequest);
            assert!(failure.message.contains(expected), "{}", failure.message);
        }
    }

    #[test]
    fn answers_read_as_documented() {
        let done = Answer::done(Done {
            state: MachineState::Paused,
            snapshot: None,
        });
        let text = serde_json::to_string(&done).unwrap();
        assert_eq!(text, r#"{"version":1,"done":{"state":"paused"}}"#);
        assert_eq!(serde_json::from_str::<Answer>(&text).unwrap(), done);
        let range = AddressRange { start: 1, end: 2 };
        let text = serde_json::to_string(&Answer::memory(vec![range])).unwrap();
        assert_eq!(text, r#"{"version":1,"memory":[{"start":1,"end":2}]}"#);
        let error = Answer::error(FailureKind::NoSpace, "full");
        let text = serde_json::to_string(&error).unwrap();
        assert_eq!(
            text,
            r#"{"version":1,"error":{"kind":"no-space","message":"full"}}"#
        );
        assert_eq!(serde_json::from_str::<Answer>(&text).unwrap(), error);
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused(line in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::parse(&line);
        }
    }
}

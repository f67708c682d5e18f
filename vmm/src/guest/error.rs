//! What can go wrong with a guest.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use guest_agent::client::ClientError;
use guest_agent::protocol::{Name, NameError};
use thiserror::Error;

use crate::control::ControlError;

/// What can go wrong with a guest.
#[derive(Debug, Error)]
pub enum GuestError {
    /// Not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A guest of that name runs.
    #[error(
        "guest {name} already runs: choose another name, or stop it first (insula guest stop {name})"
    )]
    NameTaken {
        /// The name.
        name: Name,
    },
    /// No guest has that name.
    #[error("there is no guest {name}{}", known(.running))]
    NotFound {
        /// The name.
        name: Name,
        /// The guests that run.
        running: Vec<Name>,
    },
    /// Its process has ended.
    #[error("guest {name} is not running{}: start it again (insula guest start {name})", why(.ended.as_ref()))]
    Dead {
        /// The name.
        name: Name,
        /// How it ended, if it could still say so.
        ended: Option<Ended>,
    },
    /// The machine process could not be found or executed.
    #[error("cannot run the machine process {}: {source}; build it with `cargo build --release --package vmm`, \
             or set INSULA_VMM to its path", path.display())]
    Vmm {
        /// What was tried.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Part of the specification is out of bounds.
    #[error("guest {name}: {reason}")]
    Invalid {
        /// The guest.
        name: Name,
        /// Which part, its bounds and what it was.
        reason: String,
    },
    /// A file that the guest needs is not there.
    #[error("guest {name} needs {what} {}, which cannot be read: {source}", path.display())]
    Missing {
        /// The guest.
        name: Name,
        /// What the file is.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The guest did not come up.
    #[error("guest {name} did not start: {}{}", .failure.message, .failure.tail())]
    Start {
        /// The guest.
        name: Name,
        /// What is known of it.
        failure: StartFailure,
    },
    /// The start was interrupted by a signal.
    #[error("starting guest {name} was interrupted; nothing of it is left")]
    Interrupted {
        /// The guest.
        name: Name,
    },
    /// The guest's process could not be ended.
    #[error("guest {name} (process {pid}) did not end, even after SIGKILL: see /proc/{pid}/stack")]
    Stuck {
        /// The guest.
        name: Name,
        /// Its process.
        pid: u32,
    },
    /// Somebody else profiles the guest.
    #[error(
        "guest {name} is being profiled already, or ended meanwhile: try again when that is over"
    )]
    ProfileInUse {
        /// The name.
        name: Name,
    },
    /// The machine process did not do what it was told to.
    #[error("guest {name}: {source}")]
    Control {
        /// The guest.
        name: Name,
        /// Why.
        source: ControlError,
    },
    /// The guest stands still.
    #[error("guest {name} is paused: resume it first (insula guest resume {name})")]
    Paused {
        /// The guest.
        name: Name,
    },
    /// The guest's agent did not do what it was asked to.
    #[error("guest {name}: its agent does not hold its processes: {source}")]
    Agent {
        /// The guest.
        name: Name,
        /// Why.
        source: Box<ClientError>,
    },
    /// The snapshot cannot be used.
    #[error("guest {name} cannot be restored: {reason}")]
    Snapshot {
        /// The guest.
        name: Name,
        /// Why.
        reason: String,
    },
    /// The system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What is known of a guest that did not come up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartFailure {
    /// How the machine process ended.
    pub ended: Ended,
    /// What it said, or what is to be said of it.
    pub message: String,
    /// The last lines of the console.
    pub console: String,
}

impl StartFailure {
    fn tail(&self) -> String {
        let has_run = !matches!(
            self.ended,
            Ended::Configuration | Ended::Vmm | Ended::Snapshot
        );
        match (self.console.is_empty(), has_run) {
            (false, _) => format!("\nLast lines of the console:\n{}", self.console),
            (true, true) => "\nThe console is empty.".to_owned(),
            // It did not come to printing anything.
            (true, false) => String::new(),
        }
    }
}

/// How a machine process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The agent said goodbye and the guest powered off.
    Clean,
    /// The guest's kernel panicked, or it was reset without a goodbye.
    Panicked,
    /// The guest's processor met a triple fault.
    TripleFault,
    /// KVM or the machine process failed.
    Vmm,
    /// The configuration was refused.
    Configuration,
    /// The guest never said hello.
    NeverReady,
    /// The snapshot cannot be restored, or not here.
    Snapshot,
    /// A signal ended the machine process.
    Signal(u8),
    /// Another exit code.
    Other(u8),
}

impl Ended {
    /// The exit codes of `insula-vmm` in words.
    pub fn from_exit_code(code: u8) -> Self {
        match code {
            0 => Self::Clean,
            20 => Self::Panicked,
            21 => Self::TripleFault,
            22 => Self::Vmm,
            23 => Self::Configuration,
            24 => Self::NeverReady,
            25 => Self::Snapshot,
            129..=192 => Self::Signal(code - 128),
            other => Self::Other(other),
        }
    }

    /// One word for programs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Panicked => "panicked",
            Self::TripleFault => "triple-fault",
            Self::Vmm => "vmm-error",
            Self::Configuration => "bad-configuration",
            Self::NeverReady => "never-ready",
            Self::Snapshot => "bad-snapshot",
            Self::Signal(_) => "killed",
            Self::Other(_) => "unknown",
        }
    }

    /// The exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Clean => 0,
            Self::Panicked => 20,
            Self::TripleFault => 21,
            Self::Vmm => 22,
            Self::Configuration => 23,
            Self::NeverReady => 24,
            Self::Snapshot => 25,
            Self::Signal(signal) => 128u8.saturating_add(signal),
            Self::Other(code) => code,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => f.write_str("powered off"),
            Self::Panicked => f.write_str("the guest panicked or was reset"),
            Self::TripleFault => f.write_str("triple fault in the guest"),
            Self::Vmm => f.write_str("KVM or the machine process failed"),
            Self::Configuration => f.write_str("its configuration was refused"),
            Self::NeverReady => f.write_str("it never became ready"),
            Self::Snapshot => f.write_str("its snapshot was refused"),
            Self::Signal(signal) => write!(f, "ended by signal {signal}"),
            Self::Other(code) => write!(f, "exit code {code}"),
        }
    }
}

impl GuestError {
    /// An [`GuestError::Io`].
    pub(super) fn io(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }
}

fn known(running: &[Name]) -> String {
    if running.is_empty() {
        ": none is running; see `insula guest list`, start one with `insula guest start`".to_owned()
    } else {
        let names: Vec<&str> = running.iter().map(Name::as_str).collect();
        format!(
            ": these are running: {}; see `insula guest list`",
            names.join(", ")
        )
    }
}

fn why(ended: Option<&Ended>) -> String {
    match ended {
        Some(ended) => format!(" ({ended})"),
        None => " (its process was killed)".to_owned(),
    }
}

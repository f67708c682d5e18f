//! What a machine process tells others: `status.json` in its directory, and
//! the one line on its starter's pipe.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process;

use serde::{Deserialize, Serialize};

use super::boot_timer::Spans;

/// `status.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of this format: 1.
    pub version: u32,
    /// The machine process.
    pub pid: u32,
    /// Where the machine is in its life.
    pub phase: Phase,
    /// When it reached each step of its start.
    pub spans: Spans,
    /// Whether it goes on from a snapshot.
    #[serde(default)]
    pub restored: bool,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitReport>,
}

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The guest runs, its agent has not said hello.
    Booting,
    /// The agent said hello.
    Ready,
    /// It stands still until somebody resumes it.
    Paused,
    /// It is over.
    Ended,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// The process' exit code.
    pub code: u8,
    /// The reason in words.
    pub message: String,
    /// The last lines of the console, where they may tell more.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub console: String,
}

/// The line on the starter's pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadyLine {
    /// The guest is ready.
    Ready {
        /// The machine process.
        pid: u32,
        /// When it reached each step of its start.
        spans: Spans,
    },
    /// It never will be.
    Error(ExitReport),
}

/// Tells others, as far as they asked for it.
///
/// Nothing here can fail the machine: that a report could not be written is
/// only said on standard error.
#[derive(Debug, Default)]
pub struct Reporter {
    /// Where `status.json` goes.
    pub status_path: Option<PathBuf>,
    /// The starter's pipe, closed after its one line.
    pub ready_pipe: Option<File>,
    /// Whether the machine goes on from a snapshot.
    pub restored: bool,
}

impl Reporter {
    /// The guest runs.
    pub fn booting(&self, spans: Spans) {
        self.status(Phase::Booting, spans, None);
    }

    /// The guest is ready.
    pub fn ready(&mut self, spans: Spans) {
        self.status(Phase::Ready, spans, None);
        self.line(&ReadyLine::Ready {
            pid: process::id(),
            spans,
        });
    }

    /// The guest stands still.
    pub fn paused(&self, spans: Spans) {
        self.status(Phase::Paused, spans, None);
    }

    /// The guest, which has been ready, goes on.
    pub fn running(&self, spans: Spans) {
        self.status(Phase::Ready, spans, None);
    }

    /// The machine is over. A starter that still waits learns why.
    pub fn ended(&mut self, spans: Spans, exit: ExitReport) {
        if self.ready_pipe.is_some() {
            self.line(&ReadyLine::Error(exit.clone()));
        }
        self.status(Phase::Ended, spans, Some(exit));
    }

    fn line(&mut self, line: &ReadyLine) {
        let Some(mut pipe) = self.ready_pipe.take() else {
            return;
        };
        let mut bytes = serde_json::to_vec(line).unwrap_or_default();
        bytes.push(b'\n');
        // A starter that no longer listens has no use for it.
        let _ = pipe.write_all(&bytes);
    }

    fn status(&self, phase: Phase, spans: Spans, exit: Option<ExitReport>) {
        let Some(path) = &self.status_path else {
            return;
        };
        let status = Status {
            version: 1,
            pid: process::id(),
            phase,
            spans,
            restored: self.restored,
            exit,
        };
        let bytes = serde_json::to_vec(&status).unwrap_or_default();
        let partial = path.with_extension("json.new");
        // Renamed into place, so that a reader never sees half of it.
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)
            .and_then(|mut file| file.write_all(&bytes))
            .and_then(|()| fs::rename(&partial, path));
        if let Err(error) = written {
            eprintln!("insula-vmm: cannot write {}: {error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn status_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.json");
        let mut reporter = Reporter {
            status_path: Some(path.clone()),
            ready_pipe: None,
            restored: false,
        };
        let spans = Spans {
            init: Some(7),
            ..Spans::default()
        };
        reporter.booting(spans);
        reporter.ended(
            spans,
            ExitReport {
                code: 20,
                message: "m".to_owned(),
                console: String::new(),
            },
        );
        let status: Status = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(status.phase, Phase::Ended);
        assert_eq!(status.exit.unwrap().code, 20);
        assert_eq!(status.spans.init, Some(7));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_starter_gets_one_line() {
        let mut file = tempfile::tempfile().unwrap();
        let pipe = file.try_clone().unwrap();
        let mut reporter = Reporter {
            status_path: None,
            ready_pipe: Some(pipe),
            restored: false,
        };
        reporter.ready(Spans::default());
        let exit = ExitReport {
            code: 0,
            message: String::new(),
            console: String::new(),
        };
        reporter.ended(Spans::default(), exit);
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("{\"ready\":{\"pid\":"), "{text}");
        assert_eq!(text.matches('\n').count(), 1);
    }
}

//! A log of guests' starts, for harnesses that want to know how many guests
//! they started, how, and how long each took.
//!
//! Where [`STARTS_LOG_ENV`] names a file, every start that came to a ready
//! guest adds one line of JSON to it, a [`StartRecord`]; lines of many
//! processes do not mix.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use guest_agent::protocol::Name;
use serde::{Deserialize, Serialize};

/// The variable that names the file.
pub const STARTS_LOG_ENV: &str = "INSULA_STARTS_LOG";

/// How a guest came to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartKind {
    /// Its kernel booted.
    Cold,
    /// It was restored from a snapshot.
    Restored,
}

/// One start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StartRecord {
    /// The guest's name.
    pub name: String,
    /// How it came to run.
    pub how: StartKind,
    /// From the request until its agent was ready, in milliseconds.
    pub ms: f64,
}

/// Adds a start to the log, if there is one. What cannot be written is not:
/// nobody's guest fails for a statistic.
pub(super) fn note(name: &Name, how: StartKind, took: Duration) {
    let Some(path) = std::env::var_os(STARTS_LOG_ENV).filter(|path| !path.is_empty()) else {
        return;
    };
    append(
        Path::new(&path),
        &StartRecord {
            name: name.to_string(),
            how,
            ms: took.as_secs_f64() * 1e3,
        },
    );
}

fn append(path: &Path, record: &StartRecord) {
    let Ok(mut line) = serde_json::to_vec(record) else {
        return;
    };
    line.push(b'\n');
    // In one write at the end of the file: whole, whoever else writes.
    let _ = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(&line));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_start_is_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("starts");
        let record = |how, ms| StartRecord {
            name: "web".into(),
            how,
            ms,
        };
        let all = [
            record(StartKind::Cold, 81.5),
            record(StartKind::Restored, 4.25),
        ];
        for one in &all {
            append(&path, one);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let read: Vec<StartRecord> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(read, all);
        assert!(text.contains("\"how\":\"restored\""), "{text}");
        // A place that cannot be written is nobody's trouble.
        append(Path::new("/proc/nowhere/starts"), &all[0]);
    }
}

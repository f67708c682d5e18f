//! What people and programs read of a run.

mod page;
mod plot;
mod summary;
mod terminal;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::result::Recording;

pub use page::page;
pub use summary::{Cell, Excluded, RESULT_FORMAT, RESULT_VERSION, Ratio, Summary, Verdict};
pub use terminal::terminal;

/// A report can't be written.
#[derive(Debug, Error)]
#[error("cannot write {path}: {source}")]
pub struct ReportError {
    path: PathBuf,
    source: io::Error,
}

/// Writes `result.json` and `report.html` into `directory`; returns the
/// latter's path.
///
/// # Errors
/// A file can't be written.
pub fn write(
    directory: &Path,
    recording: &Recording,
    summary: &Summary,
) -> Result<PathBuf, ReportError> {
    let json = serde_json::to_string_pretty(summary).unwrap_or_default();
    put(&directory.join("result.json"), &json)?;
    let path = directory.join("report.html");
    put(&path, &page(recording, summary))?;
    Ok(path)
}

/// Writes a whole file or leaves the old one.
fn put(path: &Path, text: &str) -> Result<(), ReportError> {
    let failed = |source| ReportError {
        path: path.to_owned(),
        source,
    };
    let temporary = path.with_extension("partial");
    fs::write(&temporary, text).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)
}

//! `samples.jsonl`: written line by line, read leniently where it was cut off
//! and strictly where it is newer than this program.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::sample::Sample;
use crate::environment::Environment;
use crate::models::{Conditions, ModelId};
use crate::plan::Plan;

/// What the first line says the file is.
pub const FORMAT: &str = "insula-compare/samples";
/// Version of the format that this program writes; it reads this and older.
pub const VERSION: u32 = 2;
/// The file's name in a result directory.
pub(super) const FILE: &str = "samples.jsonl";

/// First line: all that the samples need to be understood.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// What was to be done.
    pub plan: Plan,
    /// Where.
    pub environment: Environment,
    /// Under which conditions each model runs.
    pub conditions: Vec<Conditions>,
    /// Models that do not run here, and why.
    pub unavailable: Vec<UnavailableModel>,
}

/// A model that does not run here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnavailableModel {
    /// The model.
    pub model: ModelId,
    /// Why it does not run, and what to do.
    pub reason: String,
}

/// Last line of a run that came to an end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footer {
    /// Whether a signal ended it before the plan was done.
    pub interrupted: bool,
    /// Seconds that it took.
    pub took_s: u64,
    /// Load averages at the end.
    pub load_after: Option<String>,
    /// What went wrong and did not belong to one sample.
    pub troubles: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "one lives at a time")]
enum Line {
    Header(Header),
    Sample(Sample),
    Footer(Footer),
}

/// Everything that a run recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// The first line.
    pub header: Header,
    /// The samples in the order in which they were taken.
    pub samples: Vec<Sample>,
    /// The last line; `None` for a run that was killed.
    pub footer: Option<Footer>,
    /// Lines that could not be read (a cut-off last line counts).
    pub unreadable_lines: usize,
}

impl Recording {
    /// Whether the plan was carried out to its end.
    pub fn is_complete(&self) -> bool {
        self.footer
            .as_ref()
            .is_some_and(|footer| !footer.interrupted)
    }
}

/// What can go wrong with a result directory.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file could not be made, written or read.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// The verb.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// There is a result already.
    #[error("{0} holds a result already: choose another directory with --out")]
    Exists(PathBuf),
    /// Not a result.
    #[error("{path} is not a result of insula-compare: {reason}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Written by a later version.
    #[error(
        "{path} is of version {found} of its format, and this program reads up to {VERSION}: \
         use the newer insula-compare that wrote it"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The file's version.
        found: u64,
    },
}

/// Writes a recording, a line at a time.
#[derive(Debug)]
pub struct Writer {
    file: File,
    path: PathBuf,
}

impl Writer {
    /// Starts a recording in `directory`, which is made if need be.
    ///
    /// # Errors
    /// The directory can't be made, or holds a result already.
    pub fn create(directory: &Path, header: &Header) -> Result<Self, StoreError> {
        fs::create_dir_all(directory)
            .map_err(|source| io_error("make the directory", directory, source))?;
        let path = directory.join(FILE);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => StoreError::Exists(directory.to_owned()),
                _ => io_error("create", &path, source),
            })?;
        let mut writer = Self { file, path };
        writer.line(&Line::Header(header.clone()))?;
        Ok(writer)
    }

    /// Adds a sample; it is in the file when this returns.
    ///
    /// # Errors
    /// A full disk, most likely.
    pub fn sample(&mut self, sample: &Sample) -> Result<(), StoreError> {
        self.line(&Line::Sample(sample.clone()))
    }

    /// Ends the recording.
    ///
    /// # Errors
    /// As [`Writer::sample`].
    pub fn finish(mut self, footer: &Footer) -> Result<(), StoreError> {
        self.line(&Line::Footer(footer.clone()))?;
        self.file
            .sync_all()
            .map_err(|source| io_error("sync", &self.path, source))
    }

    fn line(&mut self, line: &Line) -> Result<(), StoreError> {
        let mut text = serde_json::to_vec(line)
            .map_err(|error| io_error("encode a line of", &self.path, error.into()))?;
        text.push(b'\n');
        // One write a line, unbuffered: what is written survives us.
        self.file
            .write_all(&text)
            .map_err(|source| io_error("write", &self.path, source))
    }
}

/// Reads what a run recorded in `directory` (or in the file itself).
///
/// # Errors
/// It is no recording, or of a later version.
pub fn read(directory: &Path) -> Result<Recording, StoreError> {
    let path = if directory.is_dir() {
        directory.join(FILE)
    } else {
        directory.to_owned()
    };
    let bytes = fs::read(&path).map_err(|source| io_error("read", &path, source))?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let header = header(lines.next().unwrap_or_default(), &path)?;
    let mut recording = Recording {
        header,
        samples: Vec::new(),
        footer: None,
        unreadable_lines: 0,
    };
    for line in lines {
        match serde_json::from_str(line) {
            Ok(Line::Sample(sample)) => recording.samples.push(sample),
            Ok(Line::Footer(footer)) => recording.footer = Some(footer),
            Ok(Line::Header(_)) | Err(_) => recording.unreadable_lines += 1,
        }
    }
    Ok(recording)
}

fn header(line: &str, path: &Path) -> Result<Header, StoreError> {
    let foreign = |reason: String| StoreError::Foreign {
        path: path.to_owned(),
        reason,
    };
    let value: serde_json::Value = serde_json::from_str(line)
        .map_err(|error| foreign(format!("its first line is not JSON ({error})")))?;
    // The version is looked at before anything that it may have changed.
    if value.get("format").and_then(|format| format.as_str()) != Some(FORMAT) {
        return Err(foreign(format!(
            "its first line does not say format {FORMAT:?}"
        )));
    }
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(found) if found > u64::from(VERSION) => {
            return Err(StoreError::Newer {
                path: path.to_owned(),
                found,
            });
        }
        Some(_) => {}
        None => return Err(foreign("its first line has no version".into())),
    }
    match serde_json::from_value(value) {
        Ok(Line::Header(header)) => Ok(header),
        Ok(_) => Err(foreign("its first line is not a header".into())),
        Err(error) => Err(foreign(format!("its first line is damaged ({error})"))),
    }
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{header, samples};

    fn written() -> (tempfile::TempDir, Header, Vec<Sample>) {
        let directory = tempfile::tempdir().unwrap();
        let (header, samples) = (header(), samples());
        let mut writer = Writer::create(directory.path(), &header).unwrap();
        for sample in &samples {
            writer.sample(sample).unwrap();
        }
        let footer = Footer {
            interrupted: false,
            took_s: 3,
            load_after: None,
            troubles: vec!["a \"quoted\" trouble".into()],
        };
        writer.finish(&footer).unwrap();
        (directory, header, samples)
    }

    #[test]
    fn comes_back_as_it_was() {
        let (directory, header, samples) = written();
        let recording = read(directory.path()).unwrap();
        assert_eq!(recording.header, header);
        assert_eq!(recording.samples, samples);
        assert!(recording.is_complete());
        assert_eq!(recording.unreadable_lines, 0);
    }

    #[test]
    fn a_cut_off_end_costs_one_line() {
        let (directory, _, samples) = written();
        let path = directory.path().join(FILE);
        let mut text = fs::read_to_string(&path).unwrap();
        let footer = text.trim_end().rfind('\n').unwrap();
        text.truncate(footer - 5);
        fs::write(&path, text).unwrap();
        let recording = read(directory.path()).unwrap();
        assert_eq!(recording.samples.len(), samples.len() - 1);
        assert_eq!(recording.unreadable_lines, 1);
        assert!(!recording.is_complete());
    }

    #[test]
    fn a_second_result_does_not_overwrite() {
        let (directory, header, _) = written();
        let error = Writer::create(directory.path(), &header).unwrap_err();
        assert!(matches!(error, StoreError::Exists(_)), "{error}");
    }

    #[test]
    fn a_file_from_before_restores_and_bursts_is_read() {
        let (directory, header, samples) = written();
        let path = directory.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap();
        let (first, rest) = text.split_once('\n').unwrap();
        let mut old: serde_json::Value = serde_json::from_str(first).unwrap();
        old["version"] = 1.into();
        let plan = old["plan"].as_object_mut().unwrap();
        for field in ["restores", "bursts", "burst_blocks"] {
            plan.remove(field).unwrap();
        }
        fs::write(&path, format!("{old}\n{rest}")).unwrap();
        let recording = read(directory.path()).unwrap();
        assert_eq!(recording.header.plan.blocks, header.plan.blocks);
        assert!(recording.header.plan.bursts.is_empty());
        assert_eq!(recording.samples, samples);
    }

    #[test]
    fn newer_and_foreign_files_are_refused() {
        let (directory, _, _) = written();
        let path = directory.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap();

        let newer = text.replacen("\"version\":2", "\"version\":3,\"unknown\":3", 1);
        fs::write(&path, newer).unwrap();
        let error = read(directory.path()).unwrap_err();
        assert!(
            matches!(error, StoreError::Newer { found: 3, .. }),
            "{error}"
        );

        for foreign in [
            "",
            "garbage",
            "{}",
            "[1]",
            "{\"format\":\"insula-compare/samples\"}",
        ] {
            fs::write(&path, foreign).unwrap();
            let error = read(directory.path()).unwrap_err();
            assert!(
                matches!(error, StoreError::Foreign { .. }),
                "{foreign}: {error}"
            );
        }
        fs::write(&path, [0xff, 0xfe, b'\n']).unwrap();
        assert!(read(directory.path()).is_err());
    }
}

//! One image in the cache, and the manifest that describes it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::inputs::{InputHash, Inputs, sha256_file};
use crate::error::{Error, IoContext, Result};

/// The manifest's name in an entry's directory.
pub(super) const MANIFEST_FILE: &str = "manifest.json";

/// The version of the manifest format that this library writes and reads.
pub const MANIFEST_VERSION: u32 = 1;

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A guest kernel; names are flavours.
    Kernel,
    /// The guest agent's binary.
    Agent,
    /// The initramfs with the agent.
    Initramfs,
    /// A read-only root file system for VPSs and microVMs.
    Template,
    /// A static program for the comparison.
    Workload,
    /// The lab's emulated host.
    LabHost,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::Kernel,
        Self::Agent,
        Self::Initramfs,
        Self::Template,
        Self::Workload,
        Self::LabHost,
    ];

    /// The name of the kind's directory in the cache, and in listings.
    pub fn dir_name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Agent => "agent",
            Self::Initramfs => "initramfs",
            Self::Template => "template",
            Self::Workload => "workload",
            Self::LabHost => "lab-host",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.dir_name())
    }
}

/// What `manifest.json` says about an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The format's version: [`MANIFEST_VERSION`].
    pub version: u32,
    /// What it is.
    pub kind: Kind,
    /// Its name among those of its kind.
    pub name: String,
    /// The hash of its inputs; the name of its directory.
    pub hash: InputHash,
    /// The inputs, by label: a short text, or the SHA-256 of a longer one.
    pub inputs: BTreeMap<String, String>,
    /// Its files, in order of their paths; the manifest is not among them.
    pub files: Vec<FileRecord>,
    /// When it was built, in seconds since 1970.
    pub built_at: u64,
    /// How long that took, in milliseconds.
    pub build_ms: u64,
}

/// One file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Its path within the entry.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    /// The SHA-256 of its content, in hexadecimal.
    pub sha256: String,
}

impl Manifest {
    /// Describes the finished files in `dir` and writes its manifest, durably.
    pub(super) fn write(
        dir: &Path,
        kind: Kind,
        name: &str,
        hash: &InputHash,
        inputs: &Inputs,
        took: Duration,
    ) -> Result<()> {
        let mut files = Vec::new();
        describe(dir, dir, &mut files)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let manifest = Self {
            version: MANIFEST_VERSION,
            kind,
            name: name.to_owned(),
            hash: hash.clone(),
            inputs: inputs.described(),
            files,
            built_at: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
            build_ms: took.as_millis().try_into().unwrap_or(u64::MAX),
        };
        let path = dir.join(MANIFEST_FILE);
        let file = File::create(&path).at("create", &path)?;
        serde_json::to_writer_pretty(&file, &manifest)
            .map_err(std::io::Error::from)
            .at("write", &path)?;
        // The rename must not reach the disk before the content.
        rustix::fs::syncfs(&file).at("flush the file system of", &path)
    }
}

/// Records every regular file below `dir`.
fn describe(root: &Path, dir: &Path, files: &mut Vec<FileRecord>) -> Result<()> {
    for item in fs::read_dir(dir).at("list", dir)? {
        let item = item.at("list", dir)?;
        let path = item.path();
        let kind = item.file_type().at("examine", &path)?;
        if kind.is_dir() {
            describe(root, &path, files)?;
        } else if kind.is_file() {
            let size = item.metadata().at("examine", &path)?.len();
            let relative = path.strip_prefix(root).unwrap_or(&path);
            let Some(relative) = relative.to_str() else {
                return Err(Error::Invalid {
                    what: "a file's name in an image",
                    reason: format!("{} is not UTF-8", path.display()),
                });
            };
            files.push(FileRecord {
                path: relative.to_owned(),
                size,
                sha256: sha256_file(&path)?,
            });
        }
    }
    Ok(())
}

/// An image in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    dir: PathBuf,
    manifest: Manifest,
}

impl Entry {
    /// Reads the entry in `dir`.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST_FILE);
        let text = fs::read(&path).at("read", &path)?;
        let bad = |reason: String| Error::BadFile {
            what: "image manifest",
            path: path.clone(),
            reason,
            cure: "remove its directory and build the image again",
        };
        // The version first: a newer manifest may have fields unknown here.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        if version > MANIFEST_VERSION {
            return Err(bad(format!(
                "it has version {version}, and this insula reads up to {MANIFEST_VERSION}"
            )));
        }
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        Ok(Self {
            dir: dir.to_path_buf(),
            manifest,
        })
    }

    /// The entry's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What is known about it.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The path of one of its files.
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// The bytes of all its files together.
    pub fn size(&self) -> u64 {
        self.manifest.files.iter().map(|f| f.size).sum()
    }

    /// Whether every file is there with its length.
    pub(super) fn sizes_match(&self) -> bool {
        self.manifest.files.iter().all(|record| {
            fs::metadata(self.dir.join(&record.path)).is_ok_and(|m| m.len() == record.size)
        })
    }

    /// Notes that the entry was asked for, so that pruning knows the newest.
    pub(super) fn mark_used(&self) {
        // A read-only cache is no reason to fail.
        if let Ok(file) = File::open(self.dir.join(MANIFEST_FILE)) {
            let _ = file.set_modified(SystemTime::now());
        }
    }

    /// When it was last asked for or built.
    pub fn last_used(&self) -> SystemTime {
        fs::metadata(self.dir.join(MANIFEST_FILE))
            .and_then(|m| m.modified())
            .unwrap_or(UNIX_EPOCH)
    }

    /// The error for a damaged entry; a `sealed` cache is filled from outside.
    pub(super) fn damaged(&self, problem: String, sealed: bool) -> Error {
        Error::Damaged {
            kind: self.manifest.kind.dir_name(),
            name: self.manifest.name.clone(),
            problem,
            cure: if sealed {
                "'insula lab stop', outside the lab, and the next command brings it in again"
            } else {
                "'insula image prune' removes it, and 'insula image build' makes it again"
            },
        }
    }
}

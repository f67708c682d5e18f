//! What is known of a guest, from the files in its directory.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::starts_log::StartKind;

/// Where a guest is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestState {
    /// Its process lives, its agent has not said hello.
    Starting,
    /// Its agent has said hello.
    Running,
    /// It stands still until it is resumed.
    Paused,
    /// Its process has ended.
    Dead,
}

impl fmt::Display for GuestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Dead => "dead",
        })
    }
}

/// How a guest is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GuestStatus {
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: GuestState,
    /// Its process, while there is one.
    pub pid: Option<u32>,
    /// How it ended, in words, if it could still say so.
    pub ended: Option<String>,
    /// The exit code of its process, if it could still say so.
    pub exit_code: Option<u8>,
    /// How it came to run, if it has said so.
    pub start: Option<StartKind>,
    /// When it reached each step of its start, in nanoseconds of the host's
    /// `CLOCK_MONOTONIC`.
    pub spans: BTreeMap<String, u64>,
    /// What the starter knew of it.
    #[serde(flatten)]
    pub record: Option<GuestRecord>,
    /// Its directory.
    pub directory: PathBuf,
}

/// What the starter knew of a guest, written into `guest.json` for those who
/// list guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestRecord {
    /// Virtual processors.
    pub vcpus: u8,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Templates that its VPSs can start from.
    pub templates: Vec<String>,
    /// The template that is the machine's own root, of a microVM.
    pub machine_root: Option<String>,
    /// Whether its memory was asked to be in huge pages, when it was restored.
    #[serde(default)]
    pub huge_pages: bool,
    /// Whether it ends with who started it.
    pub ephemeral: bool,
    /// When it was started: seconds since the Unix epoch.
    pub started_at: u64,
}

impl GuestRecord {
    pub(super) fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

/// `status.json`, as far as it matters here. Read leniently: it is written by
/// `insula-vmm` for people too, and a status that can't be read must not keep
/// a guest from being listed or stopped.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct VmmStatus {
    pub(super) pid: Option<u32>,
    #[serde(default)]
    phase: String,
    #[serde(default)]
    spans: BTreeMap<String, Option<u64>>,
    #[serde(default)]
    restored: bool,
    #[serde(default)]
    exit: Option<serde_json::Value>,
}

impl VmmStatus {
    pub(super) fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.phase.as_str(), "ready" | "running")
    }

    pub(super) fn start(&self) -> StartKind {
        if self.restored {
            StartKind::Restored
        } else {
            StartKind::Cold
        }
    }

    pub(super) fn is_paused(&self) -> bool {
        self.phase == "paused"
    }

    pub(super) fn exit_code(&self) -> Option<u8> {
        let exit = self.exit.as_ref()?;
        let code = exit.as_u64().or_else(|| exit.get("code")?.as_u64())?;
        u8::try_from(code).ok()
    }

    pub(super) fn into_spans(self) -> BTreeMap<String, u64> {
        self.spans
            .into_iter()
            .filter_map(|(name, ns)| Some((name, ns?)))
            .collect()
    }
}

//! Restoring a guest from a snapshot, as a machine of its own.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use guest_agent::protocol::Name;

use super::error::GuestError;
use super::launch::{random, run, write_private};
use super::rundir::GuestDir;
use super::running::Guest;
use super::spawn::ProcessOptions;
use super::spec::GuestSpec;
use super::status::GuestRecord;
use crate::config::{
    BootNonce, ConsoleConfig, DriveConfig, Drives, GuestCid, HugePages, MachineConfig, ReadyTimeout,
};
use crate::machine::saved_config;
use crate::snapshot::{Snapshot, copy_disk};

/// What is known of the guest besides its machine, in the directory of a
/// snapshot. Nothing depends on it.
pub(super) const RECORD: &str = "guest.json";

/// The lowest context identifier of a restored guest, and how many there are:
/// apart from those that people choose.
const CIDS: (u32, u32) = (1 << 16, 1 << 30);

/// How a guest is restored.
#[derive(Debug, Clone, Default)]
pub struct RestoreSpec {
    /// The snapshot's directory.
    pub snapshot: PathBuf,
    /// The guest's host name; its name when absent.
    pub hostname: Option<Name>,
    /// Load the pages at once that such a guest needs first.
    pub prefetch: bool,
    /// Read all of memory at once, into huge pages where the host has them.
    pub huge_pages: bool,
    /// Accept another processor model where that can be safe.
    pub force: bool,
    /// The snapshot may be removed while the guest runs: no later one is a
    /// change of it.
    pub passing: bool,
    /// Whether the guest ends with the *thread* that started it, and its
    /// [`Guest`] stops it when dropped.
    pub ephemeral: bool,
}

pub(super) fn restore(
    dir: &GuestDir,
    lock: &File,
    spec: &RestoreSpec,
    interrupt: Option<BorrowedFd<'_>>,
) -> Result<Guest, GuestError> {
    let snapshot =
        Snapshot::open(&spec.snapshot).map_err(|error| unusable(dir, error.to_string()))?;
    let saved = saved_config(&snapshot).map_err(|error| unusable(dir, error.to_string()))?;
    let ready_timeout = saved
        .readiness
        .map(|readiness| readiness.ready_timeout_ms)
        .or_else(|| ReadyTimeout::try_from(GuestSpec::DEFAULT_READY_TIMEOUT_MS).ok())
        .unwrap_or(ReadyTimeout::MAX);
    let config = own_config(dir, spec, &snapshot, saved)?;
    write_private(&dir.config_path(), config.to_json().as_bytes())?;
    let record = record(&config, &snapshot, spec);
    let record = serde_json::to_vec(&record).unwrap_or_default();
    write_private(&dir.record_path(), &record)?;

    let hostname = spec.hostname.as_ref().unwrap_or(dir.name());
    let mut arguments: Vec<OsString> = vec![
        "--restore".into(),
        snapshot.dir().into(),
        "--hostname".into(),
        hostname.as_str().into(),
    ];
    arguments.extend(spec.prefetch.then(|| "--prefetch".into()));
    arguments.extend(spec.force.then(|| "--force".into()));
    arguments.extend(spec.passing.then(|| "--passing".into()));
    let process = ProcessOptions {
        ephemeral: spec.ephemeral,
        arguments,
    };
    run(dir, lock, ready_timeout, &process, interrupt)
}

/// The machine of the snapshot, with files, sockets and secrets of its own.
fn own_config(
    dir: &GuestDir,
    spec: &RestoreSpec,
    snapshot: &Snapshot,
    mut config: MachineConfig,
) -> Result<MachineConfig, GuestError> {
    config.machine.huge_pages = if spec.huge_pages {
        HugePages::Transparent
    } else {
        HugePages::None
    };
    let mut drives = Vec::new();
    for drive in &config.drives {
        let path_on_host = own_disk(dir, snapshot, &drive.drive_id)?;
        drives.push(DriveConfig {
            path_on_host,
            ..drive.clone()
        });
    }
    config.drives = Drives::try_from(drives).map_err(|reason| unusable(dir, reason))?;
    if let Some(vsock) = &mut config.vsock {
        vsock.uds_path = dir.vsock_path();
        let (lowest, count) = CIDS;
        let cid = lowest + u32::from_le_bytes(random()?) % count;
        vsock.guest_cid =
            GuestCid::try_from(u64::from(cid)).map_err(|reason| unusable(dir, reason))?;
    }
    config.console = Some(ConsoleConfig {
        log_path: dir.console_path(),
    });
    if let Some(readiness) = &mut config.readiness {
        readiness.boot_nonce = BootNonce::new(random()?);
    }
    Ok(config)
}

/// The disk of that drive: a copy of the snapshot's, or the original, if it is
/// only read.
fn own_disk(dir: &GuestDir, snapshot: &Snapshot, drive_id: &str) -> Result<PathBuf, GuestError> {
    let mut disks = snapshot.state().disks.iter();
    let disk = disks.find(|disk| disk.drive_id == drive_id);
    let copy = disk.and_then(|disk| snapshot.disk_copy(disk));
    let original = disk.and_then(|disk| disk.path.as_ref()).map(PathBuf::from);
    match (copy, original) {
        (Some(copy), _) => {
            let disks = dir.disks_path();
            DirBuilder::new()
                .mode(0o700)
                .recursive(true)
                .create(&disks)
                .map_err(|source| GuestError::io("make", &disks, source))?;
            let own = disks.join(drive_id);
            let from = File::open(&copy).map_err(|source| GuestError::io("open", &copy, source))?;
            copy_disk(&from, &own).map_err(|error| unusable(dir, error.to_string()))?;
            Ok(own)
        }
        (None, Some(original)) => Ok(original),
        (None, None) => Err(unusable(
            dir,
            format!("it has no disk for drive {drive_id}"),
        )),
    }
}

fn record(config: &MachineConfig, snapshot: &Snapshot, spec: &RestoreSpec) -> GuestRecord {
    let kept = GuestRecord::read(&snapshot.dir().join(RECORD));
    GuestRecord {
        vcpus: config.machine.vcpu_count.get(),
        memory_bytes: config.machine.mem_size_mib.bytes(),
        templates: kept.as_ref().map_or_else(Vec::new, |r| r.templates.clone()),
        machine_root: kept.and_then(|record| record.machine_root),
        huge_pages: spec.huge_pages,
        ephemeral: spec.ephemeral,
        started_at: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
    }
}

fn unusable(dir: &GuestDir, reason: String) -> GuestError {
    GuestError::Snapshot {
        name: dir.name().clone(),
        reason,
    }
}

/// Keeps what is known of the guest with its snapshot. Without it the clones
/// are only listed with less.
pub(super) fn keep_record(dir: &GuestDir, snapshot: &Path) {
    let _ = fs::copy(dir.record_path(), snapshot.join(RECORD));
}

//! Takes snapshots of a machine that stands still.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::Machine;
use crate::config::MachineConfig;
use crate::kvm::KvmError;
use crate::memory::{Backing, DirtyTracking, MemoryError, written_pages};
use crate::snapshot::{
    MemoryToSave, SavedMachine, Snapshot, SnapshotError, SnapshotRef, SnapshotWriter, Taken,
    VmState, record_working_set,
};
use crate::vcpu::state::msrs_to_save;
use crate::vcpu::{StateSupport, VcpuStateError};

/// What a machine knows for its snapshots.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) config: MachineConfig,
    /// What memory was restored from.
    pub(super) backing: Backing,
    /// The directory of the snapshot that the backing is of, if a later one may
    /// be a change of that: its pages are mapped from there.
    pub(super) origin: Option<PathBuf>,
    /// Where to note what a guest of this snapshot needs first.
    pub(super) learn_working_set: Option<PathBuf>,
    tracking: Option<DirtyTracking>,
    /// The snapshot since which changes are tracked.
    last: Option<SnapshotRef>,
}

impl Progress {
    pub(super) fn new(config: MachineConfig) -> Self {
        Self {
            config,
            backing: Backing::default(),
            origin: None,
            learn_working_set: None,
            tracking: None,
            last: None,
        }
    }
}

/// Why a snapshot was not taken. The machine is as it was.
#[derive(Debug, Error)]
pub(super) enum TakeError {
    /// There is nothing to be a change of.
    #[error(
        "there is no snapshot of this guest that an incremental one could build on: take a full \
         one first"
    )]
    NoParent,
    /// What it could be a change of is there no more.
    #[error(
        "the snapshot that this guest was restored from is not in {} any more, so that no \
         incremental one can build on it: take a full one first", .0.display()
    )]
    OtherParent(PathBuf),
    /// What the guest wrote is not known.
    #[error(
        "cannot find out which pages the guest wrote since it was restored: {0}; take a full \
             snapshot"
    )]
    Written(#[source] io::Error),
    /// The directory is no absolute path.
    #[error("{} is no absolute path", .0.display())]
    Relative(PathBuf),
    /// It cannot be written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A processor's state cannot be read.
    #[error(transparent)]
    Vcpu(#[from] VcpuStateError),
    /// KVM refused something.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// What changed is not known.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A disk's descriptor.
    #[error("cannot copy a disk: {0}")]
    Disk(#[source] io::Error),
}

/// A snapshot of which all that the machine could still change is saved.
#[derive(Debug)]
pub(super) struct Unfinished {
    writer: SnapshotWriter,
    machine: SavedMachine,
}

impl Unfinished {
    /// Puts the snapshot in its place, if it `is_wanted` still. The machine may
    /// run meanwhile.
    pub(super) fn finish(self, is_wanted: impl FnOnce() -> bool) -> Result<Taken, SnapshotError> {
        self.writer.finish(self.machine, is_wanted)
    }
}

impl Machine {
    /// Saves what only stays the same while the machine is paused, and with
    /// `track` begins to note what changes from now on.
    pub(super) fn begin_snapshot(
        &mut self,
        directory: &Path,
        incremental: bool,
        track: bool,
    ) -> Result<Unfinished, TakeError> {
        if !directory.is_absolute() {
            return Err(TakeError::Relative(directory.to_owned()));
        }
        let progress = &mut self.progress;
        if let Some(tracking) = &mut progress.tracking {
            tracking.collect(&self.vm, &self.memory)?;
        }
        let since_restore;
        let save = match (incremental, &progress.tracking, &progress.last) {
            (false, ..) => MemoryToSave::All {
                backing: &progress.backing,
            },
            (true, Some(tracking), Some(parent)) => MemoryToSave::Changes {
                changed: tracking.changed(),
                parent,
            },
            (true, ..) => {
                let parent = origin(progress)?;
                let changed = written_pages(&self.memory).map_err(TakeError::Written)?;
                since_restore = (changed, parent);
                MemoryToSave::Changes {
                    changed: &since_restore.0,
                    parent: &since_restore.1,
                }
            }
        };
        let mut writer = SnapshotWriter::create(directory, &self.memory, save)?;
        for (drive, disk) in &self.devices.disks {
            let file = disk.try_clone_file().map_err(TakeError::Disk)?;
            if drive.is_read_only {
                writer.note_disk(&drive.drive_id, &drive.path_on_host, &file)?;
            } else {
                writer.copy_disk(&drive.drive_id, &file)?;
            }
        }
        let machine = self.saved()?;
        if track && self.progress.tracking.is_none() {
            let tracking = DirtyTracking::start(&self.vm, &self.memory)?;
            self.progress.tracking = Some(tracking);
        }
        Ok(Unfinished { writer, machine })
    }

    /// The snapshot is in its place: the next one may be a change of it.
    pub(super) fn snapshot_taken(&mut self, taken: &Taken) {
        if let Some(tracking) = &mut self.progress.tracking {
            tracking.forget();
            self.progress.last = Some(taken.snapshot.clone());
        }
    }

    /// Notes what the guest has touched until now, if that was asked for. It
    /// is only advice for the next one.
    pub(super) fn learn_working_set(&mut self) {
        if let Some(snapshot) = self.progress.learn_working_set.take()
            && let Err(error) = record_working_set(&snapshot, &self.memory)
        {
            eprintln!("insula-vmm: {error}");
        }
    }

    fn saved(&self) -> Result<SavedMachine, TakeError> {
        let support = StateSupport::new(&self.vm);
        let msrs = msrs_to_save(&self.kvm)?;
        let mut config = self.progress.config.clone();
        // The agent of a restored guest proves itself by another nonce than
        // the one that it booted with.
        if let (Some(readiness), Some(agent)) = (&mut config.readiness, &self.agent) {
            readiness.boot_nonce = agent.nonce();
        }
        Ok(SavedMachine {
            config: config.to_json(),
            cpuid: match self.vcpus.first() {
                Some(vcpu) => vcpu.cpuid()?,
                None => Vec::new(),
            },
            vcpus: self
                .vcpus
                .iter()
                .map(|vcpu| vcpu.save(&support, &msrs))
                .collect::<Result<_, _>>()?,
            vm: VmState::save(&self.vm)?,
            devices: self.devices.save(),
            boot: self.timer.spans(),
            nonce: config
                .readiness
                .map(|readiness| *readiness.boot_nonce.bytes()),
        })
    }
}

/// The snapshot that the machine was restored from, if it is there still.
fn origin(progress: &Progress) -> Result<SnapshotRef, TakeError> {
    let dir = progress.origin.as_ref().ok_or(TakeError::NoParent)?;
    let snapshot = Snapshot::open(dir)?;
    let files = |backing: &Backing| {
        let layers = backing.0.iter();
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        layers
            .map(|layer| layer.file.metadata().map(identity))
            .collect::<io::Result<Vec<_>>>()
    };
    let now = files(&snapshot.backing()).map_err(TakeError::Written)?;
    let mapped = files(&progress.backing).map_err(TakeError::Written)?;
    if now != mapped {
        return Err(TakeError::OtherParent(dir.clone()));
    }
    Ok(snapshot.as_parent())
}

//! Takes snapshots of a machine that stands still.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::Machine;
use crate::config::MachineConfig;
use crate::kvm::KvmError;
use crate::memory::{Backing, DirtyTracking, MemoryError};
use crate::snapshot::{
    MemoryToSave, SavedMachine, SnapshotError, SnapshotRef, SnapshotWriter, Taken, VmState,
    record_working_set,
};
use crate::vcpu::state::msrs_to_save;
use crate::vcpu::{StateSupport, VcpuStateError};

/// What a machine knows for its snapshots.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) config: MachineConfig,
    /// What memory was restored from.
    pub(super) backing: Backing,
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
    Disk(#[source] std::io::Error),
}

/// A snapshot of which all that the machine could still change is saved.
#[derive(Debug)]
pub(super) struct Unfinished {
    writer: SnapshotWriter,
    machine: SavedMachine,
}

impl Unfinished {
    /// Puts the snapshot in its place. The machine may run meanwhile.
    pub(super) fn finish(self) -> Result<Taken, SnapshotError> {
        self.writer.finish(self.machine)
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
        let save = match (incremental, &progress.tracking, &progress.last) {
            (false, ..) => MemoryToSave::All {
                backing: &progress.backing,
            },
            (true, Some(tracking), Some(parent)) => MemoryToSave::Changes {
                changed: tracking.changed(),
                parent,
            },
            (true, ..) => return Err(TakeError::NoParent),
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
        })
    }
}

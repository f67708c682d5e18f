//! Why a machine cannot be built.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::device_states::DevicesError;
use crate::boot::BootError;
use crate::devices::bus::BusError;
use crate::devices::virtio::ActivateError;
use crate::devices::virtio::block::BlockError;
use crate::devices::virtio::vsock::VsockError;
use crate::kvm::KvmError;
use crate::memory::MemoryError;
use crate::snapshot::SnapshotError;
use crate::vcpu::VcpuStateError;

/// Why a machine cannot be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The host's KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The guest's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, initramfs or command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The console's log.
    #[error("cannot write the console log {}: {source}", path.display())]
    Console {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A block device.
    #[error("drive {drive_id}: {source}")]
    Drive {
        /// Which drive.
        drive_id: String,
        /// What is wrong with it.
        source: BlockError,
    },
    /// The vsock device.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// Two devices want the same addresses.
    #[error("cannot place a device: {0}")]
    Bus(#[from] BusError),
    /// CPUID has more leaves than KVM takes.
    #[error("this host's KVM supports more CPUID leaves than it accepts: {0}")]
    Cpuid(vmm_sys_util::fam::Error),
    /// The snapshot that it is restored from.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A device in the snapshot.
    #[error(transparent)]
    Devices(#[from] DevicesError),
    /// A processor in the snapshot.
    #[error(transparent)]
    Vcpu(#[from] VcpuStateError),
    /// The configuration in the snapshot cannot be read.
    #[error("the configuration in the snapshot {} makes no sense: {source}", path.display())]
    SavedConfig {
        /// The snapshot.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The machine in the snapshot is not the one that is asked for.
    #[error(
        "the machine in the snapshot has other processors or memory than this guest's \
         configuration: both must be as they were"
    )]
    OtherMachine,
    /// A device's worker.
    #[error(transparent)]
    Device(#[from] ActivateError),
    /// The event loop.
    #[error("cannot set up the event loop: {0}")]
    Events(String),
    /// The process lacks something.
    #[error("cannot {what}: {source}")]
    Process {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl BuildError {
    /// The exit code of the machine process: bad configuration (23) where a
    /// configured file is at fault, bad snapshot (25), else KVM or this program (22).
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Boot(_) | Self::Console { .. } | Self::Drive { .. } => 23,
            Self::Snapshot(_)
            | Self::Devices(_)
            | Self::Vcpu(_)
            | Self::SavedConfig { .. }
            | Self::OtherMachine => 25,
            _ => 22,
        }
    }

    /// For `map_err` on what the process needs of the system.
    pub(super) fn process(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Process { what, source }
    }
}

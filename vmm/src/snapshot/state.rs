//! What the state file says: everything of a machine but its memory and disks.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use minicbor::{Decode, Encode};

use super::error::SnapshotError;
use super::vm::VmState;
use crate::config::{MemSize, VcpuCount};
use crate::kvm::plain::BytesList;
use crate::machine::boot_timer::Spans;
use crate::memory::{Extent, PAGE_SIZE};
use crate::vcpu::VcpuState;

/// SHA-256 of something.
pub type Sha256 = [u8; 32];

/// Identity of a snapshot: the SHA-256 of its state file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct SnapshotId(#[cbor(n(0), with = "minicbor::bytes")] pub Sha256);

impl std::fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A machine that does not run.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct MachineState {
    /// Its configuration, as JSON ([`MachineConfig`](crate::config::MachineConfig)).
    #[n(0)]
    pub config: String,
    /// CPUID of its first processor, which is what a host must offer.
    #[n(1)]
    pub cpuid: BytesList<kvm_cpuid_entry2>,
    /// Its processors, by number.
    #[n(2)]
    pub vcpus: Vec<VcpuState>,
    /// Interrupt controllers, timer and clock.
    #[n(3)]
    pub vm: VmState,
    /// Its devices.
    #[n(4)]
    pub devices: Vec<DeviceState>,
    /// Its memory, which is in a file of its own.
    #[n(5)]
    pub memory: MemoryLayer,
    /// Its disks' files.
    #[n(6)]
    pub disks: Vec<DiskFile>,
    /// When it was taken: nanoseconds since 1970 by the host's clock.
    #[n(7)]
    pub created_ns: u64,
    /// The program that took it.
    #[n(8)]
    pub build: String,
    /// The boot timer's steps in their order, in nanoseconds of the clock of
    /// the host that it booted on; 0 for those that it did not reach.
    #[n(9)]
    pub boot: Vec<u64>,
    /// By what its agent proves itself, as the configuration has it too, which
    /// takes long to read; absent where there is none, and in older snapshots.
    #[cbor(n(10), with = "minicbor::bytes")]
    pub nonce: Option<[u8; 16]>,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DeviceState {
    /// What it is, by name: `serial`, `virtio-block`…
    #[n(0)]
    pub kind: String,
    /// Which of its kind.
    #[n(1)]
    pub id: String,
    /// Version of the format of `bytes`.
    #[n(2)]
    pub version: u32,
    /// What it says of itself.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
}

/// What a snapshot knows of memory. The file holds the ranges one after the
/// other; what it does not hold is zero, or, with a parent, the parent's.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct MemoryLayer {
    /// The guest-physical ranges that have memory, in order.
    #[n(0)]
    pub ranges: Vec<Extent>,
    /// The file.
    #[n(1)]
    pub content: FileContent,
    /// What this is a change of.
    #[n(2)]
    pub parent: Option<Parent>,
    /// With a parent: the parts of the file that replace the parent's. They
    /// may be holes: pages that became zero.
    #[n(3)]
    pub changed: Vec<Extent>,
}

/// The snapshot below an incremental one.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Parent {
    /// Which it is.
    #[n(0)]
    pub id: SnapshotId,
    /// The directory where it was: absolute, or relative to the one of the
    /// snapshot that says this.
    #[n(1)]
    pub dir: String,
}

/// Size and content of a file.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct FileContent {
    /// Its length in bytes.
    #[n(0)]
    pub size: u64,
    /// Of what it holds, by [`super::digest`]: the same for every sparse copy.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub sha256: Sha256,
    /// Bytes that are not in holes, at most.
    #[n(2)]
    pub data: u64,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DiskFile {
    /// Which drive it is of.
    #[n(0)]
    pub drive_id: String,
    /// The file's name in the snapshot's directory `disks`; a disk that is
    /// only read is not copied and has none.
    #[n(1)]
    pub file: Option<String>,
    /// Its content, where there is a copy.
    #[n(2)]
    pub content: Option<FileContent>,
    /// For a disk that is not copied: where it is.
    #[n(3)]
    pub path: Option<String>,
    /// For a disk that is not copied: its length, the time of its last change
    /// in nanoseconds since 1970.
    #[n(4)]
    pub identity: Option<(u64, i64)>,
}

/// Time of a file's last change, in nanoseconds since 1970.
pub(super) fn unix_ns(metadata: &Metadata) -> i64 {
    metadata
        .mtime()
        .wrapping_mul(1_000_000_000)
        .wrapping_add(metadata.mtime_nsec())
}

impl MachineState {
    /// The boot timer's steps as numbers.
    pub fn boot_steps(spans: &Spans) -> Vec<u64> {
        [
            spans.process_start,
            spans.kvm_ready,
            spans.memory_ready,
            spans.kernel_loaded,
            spans.first_instruction,
            spans.init,
            spans.agent_ready,
        ]
        .map(Option::unwrap_or_default)
        .to_vec()
    }

    /// CPUID for its processors.
    ///
    /// # Errors
    /// There are more leaves than KVM takes.
    pub fn cpuid(&self) -> Result<CpuId, vmm_sys_util::fam::Error> {
        CpuId::from_entries(&self.cpuid.0)
    }

    /// Checks that every device is one of `known`: kinds with the newest
    /// version of their state that can be read.
    ///
    /// # Errors
    /// [`SnapshotError::UnknownDevice`] or [`SnapshotError::NewerDevice`].
    pub fn check_devices(&self, known: &[(&str, u32)]) -> Result<(), SnapshotError> {
        for device in &self.devices {
            let (kind, id) = (device.kind.clone(), device.id.clone());
            match known.iter().find(|(name, _)| *name == kind) {
                None => return Err(SnapshotError::UnknownDevice { kind, id }),
                Some(&(_, known)) if device.version > known => {
                    return Err(SnapshotError::NewerDevice {
                        kind,
                        id,
                        version: device.version,
                        known,
                    });
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Whether what it says of processors, memory and files can be: everything
    /// that others rely on without looking again.
    ///
    /// # Errors
    /// What cannot be.
    pub fn check(&self) -> Result<(), String> {
        let numbers = self.vcpus.iter().map(|vcpu| u64::from(vcpu.id));
        if VcpuCount::try_from(self.vcpus.len() as u64).is_err()
            || !numbers.eq(0..self.vcpus.len() as u64)
        {
            return Err(format!(
                "it has {} virtual processors, or not in order",
                self.vcpus.len()
            ));
        }
        self.memory.check()?;
        for disk in &self.disks {
            let is_name = |name: &String| {
                !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
            };
            if !disk.file.as_ref().is_none_or(is_name)
                || disk.file.is_some() != disk.content.is_some()
            {
                return Err(format!("drive {:?} has no proper file", disk.drive_id));
            }
        }
        Ok(())
    }
}

impl MemoryLayer {
    fn check(&self) -> Result<(), String> {
        let size = sum_of(&self.ranges, MOST_ADDRESS)?;
        if size != self.content.size || size == 0 || size > MemSize::MAX.bytes() {
            return Err(format!(
                "its memory has {size} bytes, its memory file {}",
                self.content.size
            ));
        }
        sum_of(&self.changed, size)?;
        if self.parent.is_none() && !self.changed.is_empty() {
            return Err("it is a change of nothing".to_owned());
        }
        Ok(())
    }
}

/// The sum of parts that are whole pages, in order, apart, and below `limit`.
fn sum_of(parts: &[Extent], limit: u64) -> Result<u64, String> {
    let (mut sum, mut last) = (0, 0);
    for part in parts {
        let end = part.start.checked_add(part.len).filter(|&end| end <= limit);
        let is_whole = part.start % PAGE_SIZE == 0 && part.len % PAGE_SIZE == 0 && part.len > 0;
        match end {
            Some(end) if is_whole && part.start >= last => last = end,
            _ => {
                return Err(format!(
                    "a part of its memory, {:#x} bytes at {:#x}, cannot be",
                    part.len, part.start
                ));
            }
        }
        sum += part.len;
    }
    Ok(sum)
}

/// End of the physical addresses that x86-64 can have.
const MOST_ADDRESS: u64 = 1 << 52;

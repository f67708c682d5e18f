//! Snapshots: a machine on disk.
//!
//! A snapshot is a directory:
//!
//! | file | content |
//! | --- | --- |
//! | `state` | everything but memory and disks, framed by [`file`], as CBOR ([`state`]) |
//! | `memory` | the guest-physical ranges one after the other, sparse |
//! | `disks/…` | copies of the disks that the guest could write |
//! | `stamp` | which memory and disk files were found good; may be missing |
//! | `working-set` | pages that a guest needs first; may be missing |

mod checksum;
pub mod cpu;
mod digest;
mod directory;
mod disk_copy;
mod error;
pub mod file;
pub mod files;
mod load;
mod memory_file;
mod stamp;
pub mod state;
pub mod vm;
mod working_set;
mod writer;

#[cfg(test)]
mod kvm_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use checksum::xxh64;
pub use cpu::CpuMismatch;
pub use disk_copy::copy_disk;
pub use error::SnapshotError;
pub use load::Snapshot;
pub use state::{DeviceState, DiskFile, MachineState, MemoryLayer, SnapshotId};
pub use vm::VmState;
pub use working_set::{record_working_set, working_set};
pub use writer::{MemoryToSave, SavedMachine, SnapshotRef, SnapshotWriter, Taken};

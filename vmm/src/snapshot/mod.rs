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
pub mod state;
pub mod vm;

pub use checksum::xxh64;
pub use state::{DeviceState, DiskFile, Extent, MachineState, MemoryLayer, SnapshotId};
pub use vm::VmState;

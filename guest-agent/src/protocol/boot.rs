//! What a guest is told when it boots.

use minicbor::{Decode, Encode};

use super::name::Name;

/// Configuration of one boot, carried in a small initramfs segment of its own
/// at [`BOOT_CONFIG_PATH`](super::BOOT_CONFIG_PATH), where no VPS can read it
/// (a kernel command line could be read from `/proc/cmdline`).
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct BootConfig {
    /// Proves to the host that a hello comes from the guest that it started.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub nonce: [u8; 16],
    /// The guest's host name.
    #[n(1)]
    pub hostname: Name,
    /// The virtio-blk devices in order: `vda`, `vdb`, …
    #[n(2)]
    pub disks: Vec<Disk>,
    /// The host's wall clock when the guest was configured, in nanoseconds
    /// since the Unix epoch; 0 when unknown.
    #[n(3)]
    pub wall_clock_ns: u64,
    /// The template that `Target::Machine` sessions have as their root, for a
    /// microVM; `None` where the machine is only a host of VPSs.
    #[n(4)]
    pub machine_root: Option<Name>,
}

/// One block device.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Disk {
    /// What the device holds.
    #[n(0)]
    pub role: DiskRole,
}

/// What a block device holds.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum DiskRole {
    /// A read-only EROFS template of that name.
    #[n(0)]
    Template(#[n(0)] Name),
    /// The ext4 data disk: VPS definitions and their private files.
    #[n(1)]
    Data,
}

//! What a machine is made of, parsed and validated once.
//!
//! The JSON form uses the names of Firecracker's API where the thing is the
//! same, refuses unknown fields, and carries a version. Every field has a type
//! that can only hold a valid value, so whoever has a [`MachineConfig`] needs
//! to check nothing but the world outside: whether the files are there.

mod error;
mod fields;
mod limits;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use error::ConfigError;
pub use fields::{BootArgs, BootNonce, Drives, GuestCid, InitrdPaths, Version};
pub use limits::{MAX_DRIVES, MemSize, ReadyTimeout, VcpuCount};

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Version of this format.
    #[serde(default)]
    pub version: Version,
    /// What kind of KVM the machine runs on.
    #[serde(
        default,
        rename = "host-kvm",
        skip_serializing_if = "HostKvm::is_hardware"
    )]
    pub host_kvm: HostKvm,
    /// Processors and memory.
    #[serde(rename = "machine-config")]
    pub machine: Resources,
    /// What is booted.
    #[serde(rename = "boot-source")]
    pub boot_source: BootSource,
    /// Block devices: `vda`, `vdb`, … in this order.
    #[serde(default, skip_serializing_if = "Drives::is_empty")]
    pub drives: Drives,
    /// The channel between host and guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// Where the serial console's output goes; nowhere when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsoleConfig>,
    /// How the guest says that it is ready; a machine without this (or without
    /// `vsock`) is never waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Readiness>,
}

/// A kind of KVM ([`crate::probe`] finds out which).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostKvm {
    /// Guests run on the processor.
    #[default]
    Hardware,
    /// Guests' supervisor code is emulated, and needs [repairs](crate::pvm).
    Pvm,
}

impl HostKvm {
    /// Whether guests run on the processor.
    pub fn is_hardware(&self) -> bool {
        *self == Self::Hardware
    }
}

/// Processors and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Number of virtual processors.
    pub vcpu_count: VcpuCount,
    /// Guest memory, in MiB.
    pub mem_size_mib: MemSize,
    /// Pages that back the guest's memory.
    #[serde(default)]
    pub huge_pages: HugePages,
}

/// Pages that back the guest's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// What the host does by default.
    #[default]
    None,
    /// The host is advised to use transparent huge pages: fewer faults and
    /// cheaper nested page walks, for memory that is only partly used.
    Transparent,
}

/// What is booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// An ELF kernel image (`vmlinux`).
    pub kernel_image_path: PathBuf,
    /// Kernel command line; the devices' part is added to it.
    #[serde(default)]
    pub boot_args: BootArgs,
    /// Initramfs segments, concatenated in this order.
    #[serde(default, skip_serializing_if = "InitrdPaths::is_empty")]
    pub initrd_paths: InitrdPaths,
}

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveConfig {
    /// Name of the drive, which is also what the guest reads as its serial number.
    pub drive_id: String,
    /// File or block device that holds the data.
    pub path_on_host: PathBuf,
    /// Whether the guest may only read.
    pub is_read_only: bool,
}

/// A virtio-vsock device, with Firecracker's Unix socket form on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context identifier.
    pub guest_cid: GuestCid,
    /// Unix socket on which connections to the guest are accepted.
    pub uds_path: PathBuf,
}

/// The serial console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// File that gets the console's output.
    pub log_path: PathBuf,
}

/// How the guest says that it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Readiness {
    /// Milliseconds from the first guest instruction to the agent's hello,
    /// after which the machine is ended.
    pub ready_timeout_ms: ReadyTimeout,
    /// What the hello must contain.
    pub boot_nonce: BootNonce,
}

impl MachineConfig {
    /// Reads a configuration from a JSON file.
    ///
    /// # Errors
    /// [`ConfigError`], which names the file and, where it is not about the
    /// file as such, the field with its line and column.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        // As text, which is found to be such once and not for each word.
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        serde_json::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source,
        })
    }

    /// The JSON form, ending in a newline.
    pub fn to_json(&self) -> String {
        // Maps with string keys and plain values always serialize.
        let mut json = serde_json::to_string_pretty(self).unwrap_or_default();
        json.push('\n');
        json
    }
}

#[cfg(test)]
mod tests;

//! Names of models.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::find;

/// An isolation model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelId {
    /// A bare process on the host's kernel: what the others are compared with.
    Process,
    /// A VPS on the host's kernel.
    HostVps,
    /// A VPS in a guest that all instances share.
    GuestVps,
    /// A guest for every instance.
    Microvm,
}

impl ModelId {
    /// All, in the order of reports.
    pub const ALL: [Self; 4] = [Self::Process, Self::HostVps, Self::GuestVps, Self::Microvm];

    /// Instances that `density.mem` launches between two looks at the host's
    /// memory: kernels give out memory in pieces of up to a few MiB, which
    /// single instances of the small models do not fill.
    pub fn density_step(self) -> u32 {
        match self {
            Self::Process => 8,
            Self::HostVps | Self::GuestVps => 4,
            Self::Microvm => 1,
        }
    }

    /// Whether its instances run in guests, which can be restored from snapshots.
    pub fn has_snapshots(self) -> bool {
        matches!(self, Self::GuestVps | Self::Microvm)
    }

    /// Its name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::HostVps => "host-vps",
            Self::GuestVps => "guest-vps",
            Self::Microvm => "microvm",
        }
    }

    /// What it is, for the report.
    pub fn description(self) -> &'static str {
        match self {
            Self::Process => "a bare process on the host's kernel",
            Self::HostVps => {
                "a virtual private server (all namespaces, cgroup, own root) on the host's kernel"
            }
            Self::GuestVps => {
                "a virtual private server in one guest, whose kernel all of them share"
            }
            Self::Microvm => "a guest of its own, with a kernel of its own, for every instance",
        }
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ModelId {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        find("model", &Self::ALL, Self::name, name)
    }
}

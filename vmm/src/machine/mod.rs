//! A machine, from its parts to its end.

pub mod agent_link;
mod agent_port;
pub mod boot_timer;
mod build;
mod devices;
pub mod ending;
mod error;
mod profiling;
pub mod report;
mod run;
mod signals;
mod wake;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvm_ioctls::VmFd;

use self::agent_link::AgentLink;
use self::boot_timer::BootTimer;
use self::devices::Devices;
use self::ending::EndSignal;
use self::profiling::ProfileServer;
use crate::config::ReadyTimeout;
use crate::memory::GuestMemory;
use crate::vcpu::{Sampler, Vcpu};

pub use self::ending::Ending;
pub use self::error::BuildError;
pub use self::profiling::INTERVAL as SAMPLING_INTERVAL;

/// A machine that is built and can be run, once.
///
/// The order of the fields is the order in which they are dropped: the
/// processors before the devices, everything that KVM knows before the memory.
pub struct Machine {
    vcpus: Vec<Vcpu>,
    devices: Devices,
    end: EndSignal,
    agent: Option<AgentLink>,
    ready_timeout: Option<ReadyTimeout>,
    timer: Arc<BootTimer>,
    sampler: Sampler,
    boot_profile: Option<PathBuf>,
    profile_server: Option<ProfileServer>,
    /// Never read: it keeps the machine and its interrupt lines alive.
    _vm: VmFd,
    /// Never read: KVM uses the mapping as long as the machine lives.
    _memory: GuestMemory,
}

impl Machine {
    /// Has the processors sampled from the first instruction until the agent
    /// is ready, and the [profile](crate::vcpu::Profile) written to this file.
    pub fn profile_boot(&mut self, path: PathBuf) {
        self.boot_profile = Some(path);
    }

    /// Has profiles served on a socket while the machine runs.
    ///
    /// # Errors
    /// What the system says.
    pub fn serve_profiles(&mut self, path: &Path) -> io::Result<()> {
        self.profile_server = Some(ProfileServer::bind(path, self.sampler.clone())?);
        Ok(())
    }

    /// The last lines of the guest's console, at most `lines`.
    pub fn console_tail(&self, lines: usize) -> String {
        self.devices.console.tail(lines)
    }
}

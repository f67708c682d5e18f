//! A machine, from its parts to its end.

pub mod agent_link;
mod agent_port;
pub mod boot_timer;
mod build;
mod device_states;
mod devices;
pub mod ending;
mod error;
mod orders;
mod pause;
mod processors;
mod profiling;
pub mod report;
mod restore;
mod run;
mod signals;
mod take;
mod wake;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use event_manager::MutEventSubscriber;
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::mmap::GuestRegionMmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use self::agent_link::AgentLink;
use self::boot_timer::BootTimer;
use self::devices::Devices;
use self::ending::EndSignal;
use self::profiling::ProfileServer;
use self::take::Progress;
use crate::config::ReadyTimeout;
use crate::control;
use crate::memory::{DirtyBitmap, GuestMemory};
use crate::pvm::Pvm;
use crate::vcpu::{Buses, Sampler, Vcpu};

pub use self::device_states::DevicesError;
pub use self::ending::Ending;
pub use self::error::BuildError;
pub use self::processors::THREAD_NAME as VCPU_THREAD_NAME;
pub use self::profiling::INTERVAL as SAMPLING_INTERVAL;
pub use self::restore::{RestoreOptions, saved_config};

/// A machine that is built and can be run, once.
///
/// The order of the fields is the order in which they are dropped: the
/// processors before the devices, everything that KVM knows before the memory.
pub struct Machine {
    vcpus: Vec<Vcpu>,
    devices: Devices,
    buses: Arc<Buses>,
    /// Drives the vsock device; in the event loop while the machine runs.
    vsock_subscriber: Option<Box<dyn MutEventSubscriber>>,
    end: EndSignal,
    agent: Option<AgentLink>,
    ready_timeout: Option<ReadyTimeout>,
    timer: Arc<BootTimer>,
    sampler: Sampler,
    boot_profile: Option<PathBuf>,
    profile_server: Option<ProfileServer>,
    control: Option<(control::Server, Receiver<control::Incoming>)>,
    /// On a PVM host, what it leaves to us.
    pvm: Option<Pvm>,
    progress: Progress,
    vm: VmFd,
    kvm: Kvm,
    /// KVM uses the mapping as long as the machine lives.
    memory: GuestMemory,
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

    /// Has the machine take orders on a socket while it runs: see
    /// [`control`](crate::control).
    ///
    /// # Errors
    /// What the system says.
    pub fn serve_control(&mut self, path: &Path) -> io::Result<()> {
        self.control = Some(control::Server::bind(path)?);
        Ok(())
    }

    /// Where this process has the guest's memory.
    fn memory_mappings(&self) -> Vec<control::AddressRange> {
        let range = |region: &GuestRegionMmap<DirtyBitmap>| {
            let start = region.as_ptr() as u64;
            let end = start + region.len();
            control::AddressRange { start, end }
        };
        self.memory.iter().map(range).collect()
    }

    /// The last lines of the guest's console, at most `lines`.
    pub fn console_tail(&self, lines: usize) -> String {
        self.devices.console.tail(lines)
    }
}

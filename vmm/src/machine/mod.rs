//! A machine, from its parts to its end.

pub mod agent_link;
mod agent_port;
pub mod boot_timer;
mod build;
mod devices;
pub mod ending;
mod error;
pub mod report;
mod run;
mod signals;
mod wake;

use std::sync::Arc;

use kvm_ioctls::VmFd;

use self::agent_link::AgentLink;
use self::boot_timer::BootTimer;
use self::devices::Devices;
use self::ending::EndSignal;
use crate::config::ReadyTimeout;
use crate::memory::GuestMemory;
use crate::vcpu::Vcpu;

pub use self::ending::Ending;
pub use self::error::BuildError;

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
    /// Never read: it keeps the machine and its interrupt lines alive.
    _vm: VmFd,
    /// Never read: KVM uses the mapping as long as the machine lives.
    _memory: GuestMemory,
}

impl Machine {
    /// The last lines of the guest's console, at most `lines`.
    pub fn console_tail(&self, lines: usize) -> String {
        self.devices.console.tail(lines)
    }
}

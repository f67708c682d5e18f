//! `guest-vps`: VPSs in one guest, whose kernel all of them share.

use vmm::guest::Guest;

use super::launcher::{Launcher, stop};
use super::partitioned::{Carrier, PartitionedModel};
use super::vps::Agent;
use super::{Clock, Conditions, Images, ModelError, ModelId};
use crate::result::Waterfall;

/// Memory of the guest that all VPSs share, in MiB.
const SHARED_MEMORY_MIB: u64 = 512;

/// VPSs in one guest.
pub type GuestVpsModel = PartitionedModel<SharedGuest>;

/// What launches the guest that VPSs share.
pub struct SharedGuest {
    launcher: Launcher,
    vcpus: u32,
}

impl GuestVpsModel {
    /// With these images and so many virtual CPUs: the host's.
    pub fn new(images: Images, vcpus: u32) -> Self {
        Self::on(SharedGuest {
            launcher: Launcher::new(ModelId::GuestVps, images),
            vcpus: vcpus.clamp(1, 16),
        })
    }
}

impl Carrier for SharedGuest {
    type Up = Guest;

    const MODEL: ModelId = ModelId::GuestVps;

    fn conditions(&self) -> Conditions {
        Conditions {
            model: Self::MODEL,
            kernel: self.launcher.images().kernel_in_words(),
            limits: super::limits_in_words(&format!(
                "memory, CPU and processes by cgroup; the guest has {} CPUs and \
                 {SHARED_MEMORY_MIB} MiB",
                self.vcpus
            )),
            image: self.launcher.images().in_words(),
            shares: "one guest with its kernel and agent, started afresh for each block; its \
                     start is no part of any figure but start.restore's and start.burst's, whose \
                     guest is restored for each"
                .into(),
        }
    }

    fn bring_up(&mut self) -> Result<(Agent, Guest), ModelError> {
        let (guest, _) = self.launcher.start(self.vcpus, SHARED_MEMORY_MIB, false)?;
        let template = self.launcher.images().template_name.clone();
        let agent = Agent::connect(Self::MODEL, guest.endpoint(), template)?;
        Ok((agent, guest))
    }

    fn take_snapshot(&mut self) -> Result<(), ModelError> {
        self.launcher
            .take_snapshot(self.vcpus, SHARED_MEMORY_MIB, false)
    }

    fn restore(&mut self, clock: Clock) -> Result<(Agent, Guest, Waterfall), ModelError> {
        let (guest, waterfall) = self.launcher.restore(clock)?;
        let template = self.launcher.images().template_name.clone();
        let agent = Agent::connect(Self::MODEL, guest.endpoint(), template)?;
        Ok((agent, guest, waterfall))
    }

    fn take_down(&mut self, guest: Guest) -> Result<(), ModelError> {
        stop(Self::MODEL, guest)
    }
}

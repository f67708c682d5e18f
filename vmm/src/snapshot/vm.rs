//! The state of what KVM emulates for the machine as a whole: interrupt
//! controllers, timer, clock.

use kvm_bindings::{
    KVM_CLOCK_TSC_STABLE, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    kvm_clock_data, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use minicbor::{Decode, Encode};

use crate::kvm::plain::Bytes;
use crate::kvm::{KvmError, refused};

/// Interrupt controllers, timer and clock.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VmState {
    /// The first 8259.
    #[n(0)]
    pub pic_master: Bytes<kvm_irqchip>,
    /// The second.
    #[n(1)]
    pub pic_slave: Bytes<kvm_irqchip>,
    /// The IOAPIC.
    #[n(2)]
    pub ioapic: Bytes<kvm_irqchip>,
    /// The 8254.
    #[n(3)]
    pub pit: Bytes<kvm_pit_state2>,
    /// What kvm-clock shows.
    #[n(4)]
    pub clock: Bytes<kvm_clock_data>,
}

impl VmState {
    /// Reads it. No processor may be running.
    ///
    /// # Errors
    /// [`KvmError::Request`], which names the part.
    pub fn save(vm: &VmFd) -> Result<Self, KvmError> {
        let chip = |chip_id, what| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..kvm_irqchip::default()
            };
            vm.get_irqchip(&mut chip).map_err(refused(what))?;
            Ok(Bytes(chip))
        };
        Ok(Self {
            pic_master: chip(KVM_IRQCHIP_PIC_MASTER, "read the first 8259")?,
            pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE, "read the second 8259")?,
            ioapic: chip(KVM_IRQCHIP_IOAPIC, "read the IOAPIC")?,
            pit: Bytes(vm.get_pit2().map_err(refused("read the timer"))?),
            clock: Bytes(vm.get_clock().map_err(refused("read the clock"))?),
        })
    }

    /// Puts it into a machine that has interrupt controllers and a timer.
    ///
    /// # Errors
    /// [`KvmError::Request`], which names the part.
    pub fn restore(&self, vm: &VmFd) -> Result<(), KvmError> {
        let chip = |chip: &Bytes<kvm_irqchip>, chip_id, what| {
            let chip = kvm_irqchip { chip_id, ..chip.0 };
            vm.set_irqchip(&chip).map_err(refused(what))
        };
        chip(
            &self.pic_master,
            KVM_IRQCHIP_PIC_MASTER,
            "set the first 8259",
        )?;
        chip(
            &self.pic_slave,
            KVM_IRQCHIP_PIC_SLAVE,
            "set the second 8259",
        )?;
        chip(&self.ioapic, KVM_IRQCHIP_IOAPIC, "set the IOAPIC")?;
        vm.set_pit2(&self.pit.0).map_err(refused("set the timer"))?;
        // The guest's clock goes on from where it stood: what has passed
        // meanwhile did not pass for it. KVM's flags are about reading.
        let clock = kvm_clock_data {
            clock: self.clock.0.clock,
            ..kvm_clock_data::default()
        };
        vm.set_clock(&clock).map_err(refused("set the clock"))
    }

    /// Whether the host's processors agreed about the time: where they do not,
    /// the guest's clock may step.
    pub fn has_stable_clock(&self) -> bool {
        self.clock.0.flags & KVM_CLOCK_TSC_STABLE != 0
    }
}

//! Puts the devices of a machine on its buses and connects them with KVM.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_agent::protocol::HOST_PORT;

use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::agent_link::AgentLink;
use super::agent_port::AgentPort;
use super::device_states::{BLOCK, VSOCK, VSOCK_ID};
use super::ending::{Cause, EndSignal};
use super::error::BuildError;
use crate::boot::cmdline::VirtioMmioDevice;
use crate::config::{ConsoleConfig, DriveConfig, MachineConfig, VsockConfig};
use crate::devices::console_log::{ConsoleLog, SharedConsoleLog};
use crate::devices::i8042::{I8042_LENGTH, I8042_PORT, ResetLine};
use crate::devices::serial::{COM1_GSI, COM1_LENGTH, COM1_PORT, SerialConsole};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::block::{Block, Disk};
use crate::devices::virtio::mmio::Transport;
use crate::devices::virtio::vsock::{self, HostPort, Vsock, VsockHandle, VsockSubscriber};
use crate::kvm::refused;
use crate::memory::{GuestMemory, layout};
use crate::vcpu::Buses;

/// The devices of a machine.
pub(super) struct Devices {
    pub(super) buses: Buses,
    pub(super) console: SharedConsoleLog,
    pub(super) serial: Arc<Mutex<SerialConsole>>,
    /// The virtio devices, in the order of their slots.
    pub(super) virtio: Vec<VirtioSlot>,
    /// The disks behind the block devices, in the order of the configuration.
    pub(super) disks: Vec<(DriveConfig, Arc<Disk>)>,
    /// What drives the vsock device.
    pub(super) vsock: Option<VsockSubscriber>,
    /// For what the host has to say to the guest on it.
    pub(super) vsock_handle: Option<VsockHandle>,
    /// Whether the host can see them.
    have_appeared: bool,
    /// Where the kernel finds them.
    pub(super) slots: Vec<VirtioMmioDevice>,
}

/// A virtio device on the bus.
pub(super) struct VirtioSlot {
    /// What it is, as a snapshot calls it.
    pub(super) kind: &'static str,
    /// Which of its kind.
    pub(super) id: String,
    transport: Arc<Mutex<Transport>>,
}

impl VirtioSlot {
    pub(super) fn transport(&self) -> MutexGuard<'_, Transport> {
        // A transport that panicked is on its way down with its machine.
        self.transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Devices {
    /// Console and reset line, which every machine has.
    pub(super) fn new(vm: &VmFd, end: &EndSignal) -> Result<Self, BuildError> {
        let console = SharedConsoleLog::new(ConsoleLog::discard());

        let mut buses = Buses::default();
        let interrupt = event()?;
        vm.register_irqfd(&interrupt, COM1_GSI)
            .map_err(refused("connect the console's interrupt"))?;
        let serial = Arc::new(Mutex::new(SerialConsole::new(interrupt, console.clone())));
        buses.pio.insert(COM1_PORT, COM1_LENGTH, serial.clone())?;

        let end = end.clone();
        let reset_line = ResetLine::new(move || end.raise(Cause::Reset));
        buses
            .pio
            .insert(I8042_PORT, I8042_LENGTH, Arc::new(Mutex::new(reset_line)))?;

        Ok(Self {
            buses,
            console,
            serial,
            virtio: Vec::new(),
            disks: Vec::new(),
            vsock: None,
            vsock_handle: None,
            have_appeared: false,
            slots: Vec::new(),
        })
    }

    /// Makes what the host sees of them and the guest does not: the console's
    /// file and the channel's socket. Until then the console keeps the last
    /// lines, and nobody can call the guest. Only the first time counts.
    pub(super) fn appear(&mut self, config: &MachineConfig) -> Result<(), BuildError> {
        if mem::replace(&mut self.have_appeared, true) {
            return Ok(());
        }
        if let Some(ConsoleConfig { log_path }) = &config.console {
            self.console
                .open(log_path)
                .map_err(|source| BuildError::Console {
                    path: log_path.clone(),
                    source,
                })?;
        }
        if let Some(vsock) = &self.vsock_handle {
            vsock.listen()?;
        }
        Ok(())
    }

    /// The configured drives, in order.
    pub(super) fn add_drives(
        &mut self,
        vm: &VmFd,
        memory: &GuestMemory,
        config: &MachineConfig,
    ) -> Result<(), BuildError> {
        for drive in &config.drives {
            let block = Block::new(&drive.path_on_host, drive.is_read_only, &drive.drive_id)
                .map_err(|source| BuildError::Drive {
                    drive_id: drive.drive_id.clone(),
                    source,
                })?;
            self.disks.push((drive.clone(), Arc::clone(block.disk())));
            self.add_virtio(vm, memory, BLOCK, &drive.drive_id, Box::new(block))?;
        }
        Ok(())
    }

    /// The channel between host and guest, on which `agent` is called.
    pub(super) fn add_vsock(
        &mut self,
        vm: &VmFd,
        memory: &GuestMemory,
        config: &VsockConfig,
        agent: Option<AgentLink>,
    ) -> Result<(), BuildError> {
        let mut ports: BTreeMap<u32, Box<dyn HostPort>> = BTreeMap::new();
        if let Some(agent) = agent {
            ports.insert(HOST_PORT, Box::new(AgentPort::new(agent)));
        }
        let device = Vsock::new(vsock::VsockConfig {
            guest_cid: u64::from(config.guest_cid.get()),
            path: config.uds_path.clone(),
            ports,
        })?;
        self.vsock = Some(device.subscriber());
        self.vsock_handle = Some(device.handle());
        self.add_virtio(vm, memory, VSOCK, VSOCK_ID, Box::new(device))
    }

    /// Puts a virtio device into the next slot. Notifications and interrupts
    /// go through KVM and cost no exit to this process.
    pub(super) fn add_virtio(
        &mut self,
        vm: &VmFd,
        memory: &GuestMemory,
        kind: &'static str,
        id: &str,
        device: Box<dyn VirtioDevice>,
    ) -> Result<(), BuildError> {
        let index = self.slots.len() as u32;
        let slot = VirtioMmioDevice {
            address: layout::VIRTIO_MMIO + u64::from(index) * layout::VIRTIO_MMIO_SIZE,
            gsi: layout::VIRTIO_GSI + index,
        };
        let transport = Transport::new(memory.clone(), device)
            .map_err(BuildError::process("create a device's interrupt event"))?;
        vm.register_irqfd(transport.interrupt().event(), slot.gsi)
            .map_err(refused("connect a device's interrupt"))?;
        let notify = IoEventAddress::Mmio(slot.address + Transport::QUEUE_NOTIFY);
        for (queue, event) in (0u32..).zip(transport.queue_events()) {
            vm.register_ioevent(event, &notify, queue)
                .map_err(refused("connect a device's notification"))?;
        }
        let transport = Arc::new(Mutex::new(transport));
        self.buses
            .mmio
            .insert(slot.address, layout::VIRTIO_MMIO_SIZE, transport.clone())?;
        self.virtio.push(VirtioSlot {
            kind,
            id: id.to_owned(),
            transport,
        });
        self.slots.push(slot);
        Ok(())
    }
}

fn event() -> Result<EventFd, BuildError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
        .map_err(BuildError::process("create an event descriptor"))
}

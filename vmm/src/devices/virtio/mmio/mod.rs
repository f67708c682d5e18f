//! Virtio over MMIO (virtio 1.2, 4.2), the modern interface only.
//!
//! The driver is not trusted: an access that the specification does not allow
//! in the present state is ignored, and the driver sees that when it reads
//! back; a driver that gets as far as `DRIVER_OK` with queues that cannot be
//! used gets `DEVICE_NEEDS_RESET`.

mod queue_registers;
mod registers;
mod saved;

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

use self::queue_registers::{QueueRegisters, set_high, set_low};
use self::registers::{self as reg, status};
use super::state::QueueProgress;
use super::{ActivateError, Activation, Interrupt, VirtioDevice};
use crate::devices::bus::BusDevice;
use crate::memory::GuestMemory;

/// The MMIO registers of one virtio device.
pub struct Transport {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    /// The driver set feature bits from 64 up: there are none.
    driver_features_beyond: bool,
    queue_sel: u32,
    queues: Vec<QueueRegisters>,
    active: bool,
    /// One report per device on standard error, so that a guest cannot fill
    /// the log.
    reported: bool,
}

impl Transport {
    /// Length in bytes of the device's range on the MMIO bus.
    pub const SIZE: u64 = 0x1000;

    /// Offset of the register that KVM can watch in our place (ioeventfd): the
    /// driver writes the queue's index there, 32 bits wide.
    pub const QUEUE_NOTIFY: u64 = reg::QUEUE_NOTIFY;

    /// Puts `device` behind MMIO registers.
    ///
    /// # Errors
    /// The process is out of file descriptors.
    pub fn new(memory: GuestMemory, device: Box<dyn VirtioDevice>) -> io::Result<Self> {
        let queues = device
            .queue_sizes()
            .iter()
            .map(|&max| QueueRegisters::new(max))
            .collect();
        Ok(Self {
            device,
            memory,
            interrupt: Arc::new(Interrupt::new()?),
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            driver_features_beyond: false,
            queue_sel: 0,
            queues,
            active: false,
            reported: false,
        })
    }

    /// The device's interrupt; its [`Interrupt::event`] is to be registered
    /// with KVM as an irqfd.
    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    /// One event for each queue, to be registered with KVM as an ioeventfd at
    /// [`Self::QUEUE_NOTIFY`], with the queue's index as 32-bit datamatch.
    /// Where it is not, the transport writes it itself.
    pub fn queue_events(&self) -> &[Arc<EventFd>] {
        self.device.queue_events()
    }

    /// Stops the device, as the driver would: for the end of the machine.
    pub fn reset(&mut self) {
        if self.active {
            self.device.reset();
        }
        self.active = false;
        self.interrupt.reset();
        self.status = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.driver_features_beyond = false;
        self.queue_sel = 0;
        for queue in &mut self.queues {
            *queue = QueueRegisters::new(queue.max_size);
        }
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(self.queue_sel as usize)
    }

    /// The selected queue, if the driver may change its registers: between
    /// `FEATURES_OK` and `DRIVER_OK` (3.1.1).
    fn configurable(&mut self) -> Option<&mut QueueRegisters> {
        let negotiated = self.has(status::FEATURES_OK);
        let closed = self.status & (status::DRIVER_OK | status::FAILED) != 0;
        if !negotiated || closed {
            return None;
        }
        self.queues.get_mut(self.queue_sel as usize)
    }

    fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            reg::MAGIC_VALUE => reg::MAGIC,
            reg::VERSION => reg::MODERN,
            reg::DEVICE_ID => self.device.device_type(),
            reg::VENDOR_ID => reg::VENDOR,
            reg::DEVICE_FEATURES => match self.device_features_sel {
                0 => self.device.features() as u32,
                1 => (self.device.features() >> 32) as u32,
                _ => 0,
            },
            reg::QUEUE_NUM_MAX => self.selected().map_or(0, |queue| u32::from(queue.max_size)),
            reg::QUEUE_READY => self.selected().map_or(0, |queue| u32::from(queue.ready)),
            reg::INTERRUPT_STATUS => self.interrupt.status(),
            reg::STATUS if self.interrupt.is_reset_needed() => {
                self.status | status::DEVICE_NEEDS_RESET
            }
            reg::STATUS => self.status,
            // All ones: there is no such shared memory region (4.2.2.1).
            reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH => u32::MAX,
            reg::CONFIG_GENERATION => self.interrupt.generation(),
            // What is write-only or not there.
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::DRIVER_FEATURES => self.write_driver_features(value),
            reg::QUEUE_SEL => self.queue_sel = value,
            reg::QUEUE_NUM => self.change_queue(|queue| queue.size = value),
            reg::QUEUE_READY => {
                if let Some(queue) = self.configurable() {
                    queue.ready = value == 1;
                }
            }
            reg::QUEUE_NOTIFY => self.notify(value),
            reg::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            reg::STATUS => self.write_status(value),
            reg::QUEUE_DESC_LOW => self.change_queue(|q| set_low(&mut q.descriptors, value)),
            reg::QUEUE_DESC_HIGH => self.change_queue(|q| set_high(&mut q.descriptors, value)),
            reg::QUEUE_DRIVER_LOW => self.change_queue(|q| set_low(&mut q.driver, value)),
            reg::QUEUE_DRIVER_HIGH => self.change_queue(|q| set_high(&mut q.driver, value)),
            reg::QUEUE_DEVICE_LOW => self.change_queue(|q| set_low(&mut q.device, value)),
            reg::QUEUE_DEVICE_HIGH => self.change_queue(|q| set_high(&mut q.device, value)),
            _ => {}
        }
    }

    /// Size and addresses are fixed from the moment the queue is ready.
    fn change_queue(&mut self, change: impl FnOnce(&mut QueueRegisters)) {
        if let Some(queue) = self.configurable().filter(|queue| !queue.ready) {
            change(queue);
        }
    }

    fn write_driver_features(&mut self, value: u32) {
        if !self.has(status::DRIVER) || self.has(status::FEATURES_OK | status::FAILED) {
            return;
        }
        match self.driver_features_sel {
            0 => set_low(&mut self.driver_features, value),
            1 => set_high(&mut self.driver_features, value),
            _ => self.driver_features_beyond |= value != 0,
        }
    }

    fn notify(&mut self, index: u32) {
        let event = self.device.queue_events().get(index as usize);
        if let Some(event) = event.filter(|_| self.active) {
            // The only error is EAGAIN: a notification is pending already.
            let _ = event.write(1);
        }
    }

    /// One step of the status state machine (3.1.1). The driver may reset,
    /// set `FAILED` at any time, or add the next bit of the sequence; it never
    /// clears one (2.1.1).
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        // The device's own bit: the driver may write back what it read.
        let value = value & !status::DEVICE_NEEDS_RESET;
        if value & self.status != self.status || self.has(status::FAILED) {
            return;
        }
        let sequence = [
            status::ACKNOWLEDGE,
            status::DRIVER,
            status::FEATURES_OK,
            status::DRIVER_OK,
        ];
        let next = sequence
            .into_iter()
            .find(|&bit| !self.has(bit))
            .unwrap_or(0);
        match value & !self.status {
            0 => {}
            added if added & status::FAILED != 0 => self.status |= status::FAILED,
            added if added != next => {}
            status::FEATURES_OK if !self.are_features_acceptable() => {}
            status::DRIVER_OK => {
                self.status |= status::DRIVER_OK;
                self.activate();
            }
            added => self.status |= added,
        }
    }

    fn are_features_acceptable(&self) -> bool {
        let modern = self.driver_features & (1 << VIRTIO_F_VERSION_1) != 0;
        let unknown = self.driver_features & !self.device.features();
        modern && unknown == 0 && !self.driver_features_beyond
    }

    fn activate(&mut self) {
        match self.try_activate(None) {
            Ok(()) => self.active = true,
            Err(error) => {
                if !self.reported {
                    self.reported = true;
                    let device = self.device.device_type();
                    eprintln!("virtio device of type {device}: driver refused: {error}");
                }
                self.interrupt.device_needs_reset();
            }
        }
    }

    /// Gives the device its queues, from the beginning or from where it was.
    fn try_activate(&mut self, progress: Option<&[QueueProgress]>) -> Result<(), ActivateError> {
        let event_idx = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let queues = self.queues.iter().enumerate();
        let queues = queues.map(|(index, queue)| queue.build(index, event_idx, &self.memory));
        let mut queues = queues.collect::<Result<Vec<_>, _>>()?;
        for (queue, progress) in queues.iter_mut().zip(progress.unwrap_or_default()) {
            queue.set_next_avail(progress.next_avail);
            queue.set_next_used(progress.next_used);
        }
        let activation = Activation {
            queues,
            memory: self.memory.clone(),
            features: self.driver_features,
            interrupt: Arc::clone(&self.interrupt),
        };
        self.device.activate(activation)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.device.config();
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(config.len());
        let available = &config[start..];
        let len = available.len().min(data.len());
        data[..len].copy_from_slice(&available[..len]);
    }
}

impl BusDevice for Transport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= reg::CONFIG {
            self.read_config(offset - reg::CONFIG, data);
        } else if data.len() == 4 {
            // Below the configuration space only aligned 32-bit accesses are
            // allowed (4.2.2.2); an unaligned one matches no register.
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= reg::CONFIG {
            if self.has(status::DRIVER) && !self.has(status::FAILED) {
                self.device.write_config(offset - reg::CONFIG, data);
            }
        } else if let Ok(value) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(value));
        }
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.reset();
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport")
            .field("device_type", &self.device.device_type())
            .field("status", &self.status)
            .field("driver_features", &self.driver_features)
            .field("queues", &self.queues)
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

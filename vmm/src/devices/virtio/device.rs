//! What a transport needs to know of a device.

use std::io;
use std::sync::Arc;

use thiserror::Error;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use super::Interrupt;
use super::state::{DeviceState, DeviceStateError, QueueProgress};
use crate::memory::GuestMemory;

/// What a device gets when the driver sets `DRIVER_OK`.
#[derive(Debug)]
pub struct Activation {
    /// The guest's memory, in which the queues and all buffers are.
    pub memory: GuestMemory,
    /// The features that the driver accepted: a subset of those offered,
    /// `VIRTIO_F_VERSION_1` always among them.
    pub features: u64,
    /// All queues of the device, in order, ready and with valid addresses;
    /// event-index suppression is switched on where it was negotiated.
    pub queues: Vec<Queue>,
    /// How to reach the driver.
    pub interrupt: Arc<Interrupt>,
}

/// Why a device could not start. The driver sees `DEVICE_NEEDS_RESET`.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// A queue was left unready, or lies outside of guest memory.
    #[error(
        "virtio queue {index} is not usable: size {size}, descriptors at {descriptors:#x}, \
         driver area at {driver:#x}, device area at {device:#x}"
    )]
    Queue {
        /// Index of the queue.
        index: usize,
        /// Number of entries that the driver chose.
        size: u32,
        /// Guest address of the descriptor table.
        descriptors: u64,
        /// Guest address of the available ring.
        driver: u64,
        /// Guest address of the used ring.
        device: u64,
    },
    /// The device could not get what it needs of the host.
    #[error("cannot start the virtio device's worker: {0}")]
    Worker(#[source] io::Error),
}

/// A virtio device, as its transport sees it.
///
/// The transport calls everything here under its own lock, from whichever
/// vCPU thread the driver runs on; work on queues belongs in a worker or in the
/// event loop.
pub trait VirtioDevice: Send {
    /// The device's type (virtio 1.2, 5): 2 block, 19 vsock…
    fn device_type(&self) -> u32;

    /// All features that the device offers, `VIRTIO_F_VERSION_1` included.
    fn features(&self) -> u64;

    /// The largest size of each queue, a power of two of at most 32768; as
    /// many queues as there are sizes.
    fn queue_sizes(&self) -> &[u16];

    /// One event for each queue, written when the driver notifies the queue.
    /// They live as long as the device, so that they can be registered with
    /// KVM (ioeventfd) once and for all.
    fn queue_events(&self) -> &[Arc<EventFd>];

    /// The device's configuration space, as the driver reads it. What lies
    /// beyond its end reads as zero.
    fn config(&self) -> &[u8];

    /// The driver writes to the configuration space. Few devices have
    /// anything there to write: the default ignores it.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Starts work on the queues.
    ///
    /// # Errors
    /// See [`ActivateError`]; the device is then as it was after reset.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops all work. When it returns, nothing touches the queues or the
    /// guest's buffers any more, and the device can be activated again.
    /// Resetting a device that is not active does nothing.
    fn reset(&mut self);

    /// Stops all work, but keeps the queues: when it returns, nothing touches
    /// them or the guest's buffers until [`Self::resume`]. A device that is
    /// activated after this starts paused.
    fn pause(&mut self);

    /// Goes on after [`Self::pause`], as if every queue had been notified.
    ///
    /// # Errors
    /// See [`ActivateError`]; the device is paused then.
    fn resume(&mut self) -> Result<(), ActivateError>;

    /// How far the device is with each of its queues, if it is active and has
    /// not given them up. Only while it is paused.
    fn progress(&self) -> Option<Vec<QueueProgress>>;

    /// What of the device itself, without its queues, belongs to a snapshot.
    fn save(&self) -> DeviceState;

    /// Takes over what [`Self::save`] returned, before the device is activated.
    ///
    /// # Errors
    /// It is of another kind of device, or of one that this one cannot stand
    /// in for.
    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError>;
}

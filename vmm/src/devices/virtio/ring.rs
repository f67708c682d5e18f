//! A virtqueue and the guest memory it lies in, with the errors that the
//! queue's own iterator keeps to itself.

use std::sync::atomic::Ordering;

use thiserror::Error;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestMemory;

use super::state::QueueProgress;

/// The driver's rings make no sense, or are out of reach.
#[derive(Debug, Error)]
#[error("virtio ring: {0}")]
pub struct RingError(#[from] virtio_queue::Error);

/// One active queue.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    memory: GuestMemory,
}

impl Ring {
    /// A queue that the transport has checked against `memory`.
    pub fn new(queue: Queue, memory: GuestMemory) -> Self {
        Self { queue, memory }
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The queue itself, for its indices and addresses.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// How far the device is with the queue.
    pub fn progress(&self) -> QueueProgress {
        QueueProgress {
            next_avail: self.queue.next_avail(),
            next_used: self.queue.next_used(),
        }
    }

    /// The next chain that the driver has made available, if there is one.
    ///
    /// # Errors
    /// The driver claims more chains than the queue has entries.
    pub fn pop(&mut self) -> Result<Option<DescriptorChain<&GuestMemory>>, RingError> {
        Ok(self.queue.iter(&self.memory)?.next())
    }

    /// Puts back the chain that was popped last.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Returns the chain that starts at `head`, in which the device wrote
    /// `len` bytes.
    ///
    /// # Errors
    /// `head` is not an index of this queue.
    pub fn push_used(&mut self, head: u16, len: u32) -> Result<(), RingError> {
        Ok(self.queue.add_used(&self.memory, head, len)?)
    }

    /// Whether the driver wants an interrupt for what was pushed since the
    /// last call.
    ///
    /// # Errors
    /// The rings are out of reach.
    pub fn needs_interrupt(&mut self) -> Result<bool, RingError> {
        // Has the fence between our used index and the driver's wish.
        let wanted = self.queue.needs_notification(&self.memory)?;
        if !wanted || self.queue.event_idx_enabled() {
            return Ok(wanted);
        }
        // Without event indices the wish is a flag (2.7.7), which the queue
        // type does not look at.
        let flags = GuestAddress(self.queue.avail_ring());
        let flags: u16 = self
            .memory
            .load(flags, Ordering::Relaxed)
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Asks the driver not to notify: the device is looking anyway.
    ///
    /// # Errors
    /// The rings are out of reach.
    pub fn disable_notification(&mut self) -> Result<(), RingError> {
        Ok(self.queue.disable_notification(&self.memory)?)
    }

    /// Asks the driver to notify. Returns `true` if a chain has come in the
    /// meantime, for which no notification may arrive.
    ///
    /// # Errors
    /// The rings are out of reach.
    pub fn enable_notification(&mut self) -> Result<bool, RingError> {
        Ok(self.queue.enable_notification(&self.memory)?)
    }
}

//! The registers of one queue, as the driver fills them before `DRIVER_OK`.

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use crate::devices::virtio::ActivateError;
use crate::devices::virtio::state::QueueRegistersState;
use crate::memory::GuestMemory;

/// What the driver wrote, kept as it came and judged only when the queue is
/// to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueueRegisters {
    pub(super) max_size: u16,
    pub(super) size: u32,
    pub(super) ready: bool,
    pub(super) descriptors: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
}

impl QueueRegisters {
    pub(super) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: 0,
            ready: false,
            descriptors: 0,
            driver: 0,
            device: 0,
        }
    }

    /// What belongs to a snapshot.
    pub(super) fn save(&self) -> QueueRegistersState {
        QueueRegistersState {
            max_size: self.max_size,
            size: self.size,
            ready: self.ready,
            descriptors: self.descriptors,
            driver: self.driver,
            device: self.device,
        }
    }

    /// What [`Self::save`] returned.
    pub(super) fn restored(state: &QueueRegistersState) -> Self {
        Self {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            descriptors: state.descriptors,
            driver: state.driver,
            device: state.device,
        }
    }

    /// The queue that these registers describe.
    ///
    /// # Errors
    /// It is not ready, its size is not a power of two of at most the maximum,
    /// a part is misaligned (2.7), or does not lie in `memory` as a whole.
    pub(super) fn build(
        &self,
        index: usize,
        event_idx: bool,
        memory: &GuestMemory,
    ) -> Result<Queue, ActivateError> {
        self.try_build(event_idx, memory)
            .ok_or(ActivateError::Queue {
                index,
                size: self.size,
                descriptors: self.descriptors,
                driver: self.driver,
                device: self.device,
            })
    }

    fn try_build(&self, event_idx: bool, memory: &GuestMemory) -> Option<Queue> {
        let mut queue = Queue::new(self.max_size).ok()?;
        queue.try_set_size(u16::try_from(self.size).ok()?).ok()?;
        queue
            .try_set_desc_table_address(GuestAddress(self.descriptors))
            .ok()?;
        queue
            .try_set_avail_ring_address(GuestAddress(self.driver))
            .ok()?;
        queue
            .try_set_used_ring_address(GuestAddress(self.device))
            .ok()?;
        queue.set_event_idx(event_idx);
        queue.set_ready(self.ready);
        // The queue type takes an available ring at address 0 for one that was
        // never set.
        (self.driver != 0 && queue.is_valid(memory)).then_some(queue)
    }
}

/// Replaces the lower half of `address`.
pub(super) fn set_low(address: &mut u64, value: u32) {
    *address = (*address & !0xffff_ffff) | u64::from(value);
}

/// Replaces the upper half of `address`.
pub(super) fn set_high(address: &mut u64, value: u32) {
    *address = (*address & 0xffff_ffff) | (u64::from(value) << 32);
}

//! A driver for tests: rings written by hand, so that they can be wrong.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestMemory;

/// Size of the lower of the two regions.
pub(crate) const MEMORY_SIZE: u64 = 1 << 20;

/// One MiB from 0 and one from 2 MiB, with a hole in between.
pub(crate) fn memory() -> GuestMemory {
    let size = MEMORY_SIZE as usize;
    GuestMemory::from_ranges(&[(GuestAddress(0), size), (GuestAddress(2 << 20), size)]).unwrap()
}

/// A buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffer {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) writable: bool,
}

/// A buffer for the device to read.
pub(crate) fn readable(address: u64, len: u32) -> Buffer {
    Buffer {
        address,
        len,
        writable: false,
    }
}

/// A buffer for the device to write.
pub(crate) fn writable(address: u64, len: u32) -> Buffer {
    Buffer {
        address,
        len,
        writable: true,
    }
}

/// The driver's side of one queue, which takes 12 KiB from `base`.
pub(crate) struct DriverQueue {
    memory: GuestMemory,
    base: u64,
    size: u16,
    next_descriptor: u16,
    avail: u16,
    used: u16,
}

impl DriverQueue {
    pub(crate) fn new(memory: &GuestMemory, base: u64, size: u16) -> Self {
        let zeros = [0; 0x3000];
        memory.write_slice(&zeros, GuestAddress(base)).unwrap();
        Self {
            memory: memory.clone(),
            base,
            size,
            next_descriptor: 0,
            avail: 0,
            used: 0,
        }
    }

    pub(crate) fn descriptors(&self) -> u64 {
        self.base
    }

    pub(crate) fn avail_ring(&self) -> u64 {
        self.base + 0x1000
    }

    pub(crate) fn used_ring(&self) -> u64 {
        self.base + 0x2000
    }

    /// The device's side, as a transport would make it.
    pub(crate) fn queue(&self, event_idx: bool) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(self.descriptors()))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(self.avail_ring()))
            .unwrap();
        queue
            .try_set_used_ring_address(GuestAddress(self.used_ring()))
            .unwrap();
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        assert!(queue.is_valid(&self.memory));
        queue
    }

    pub(crate) fn write_descriptor(
        &self,
        index: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let at = self.descriptors() + u64::from(index) * 16;
        self.memory.write_obj(address, GuestAddress(at)).unwrap();
        self.memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes a chain of `buffers` available; returns its head. The caller
    /// keeps no more descriptors in flight than there are.
    pub(crate) fn offer(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (i, buffer) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let next = if i + 1 < buffers.len() {
                VRING_DESC_F_NEXT
            } else {
                0
            };
            let write = if buffer.writable {
                VRING_DESC_F_WRITE
            } else {
                0
            };
            let flags = (next | write) as u16;
            self.write_descriptor(
                index,
                buffer.address,
                buffer.len,
                flags,
                self.next_descriptor,
            );
        }
        self.offer_head(head);
        head
    }

    /// Makes whatever is at `head` available.
    pub(crate) fn offer_head(&mut self, head: u16) {
        let at = self.avail_ring() + 4 + u64::from(self.avail % self.size) * 2;
        self.memory.write_obj(head, GuestAddress(at)).unwrap();
        fence(Ordering::SeqCst);
        self.avail = self.avail.wrapping_add(1);
        self.set_avail_index(self.avail);
    }

    pub(crate) fn set_avail_index(&self, index: u16) {
        self.memory
            .store(index, GuestAddress(self.avail_ring() + 2), Ordering::SeqCst)
            .unwrap();
    }

    pub(crate) fn set_no_interrupt(&self) {
        self.memory
            .write_obj(1_u16, GuestAddress(self.avail_ring()))
            .unwrap();
    }

    /// With event indices: after which used buffer an interrupt is wanted.
    pub(crate) fn set_used_event(&self, index: u16) {
        let at = self.avail_ring() + 4 + u64::from(self.size) * 2;
        self.memory.write_obj(index, GuestAddress(at)).unwrap();
    }

    /// The next used buffer: the head of its chain and the length.
    pub(crate) fn take_used(&mut self) -> Option<(u16, u32)> {
        let index: u16 = self
            .memory
            .load(GuestAddress(self.used_ring() + 2), Ordering::SeqCst)
            .unwrap();
        if index == self.used {
            return None;
        }
        let at = self.used_ring() + 4 + u64::from(self.used % self.size) * 8;
        self.used = self.used.wrapping_add(1);
        let head: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
        let len: u32 = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
        Some((head as u16, len))
    }
}

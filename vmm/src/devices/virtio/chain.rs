//! Descriptor chains as two strings of bytes: what the device reads, then
//! what it writes.
//!
//! A device must not care how the driver cuts a message into descriptors
//! (virtio 1.2, 2.7.4.1), so parsers work on [`Segments`], which can be read
//! and written at any offset. Everything in a chain is the guest's word:
//! lengths add up in 64 bits, addresses are checked at each access.

use thiserror::Error;
use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemory as _, GuestMemoryError, Permissions};

use crate::memory::{GuestMemory, GuestSlice};

/// Why a chain is not one that a driver may offer. The device that meets one
/// stops and asks for a reset.
#[derive(Debug, Error)]
pub enum ChainError {
    /// The chain loops, leaves its table or guest memory, nests indirect
    /// tables, or its lengths pass 4 GiB (2.7.5.2).
    #[error("the descriptor chain at {head} is broken after {descriptors} descriptors")]
    Broken {
        /// Index of the chain's first descriptor.
        head: u16,
        /// How many descriptors were good.
        descriptors: usize,
    },
    /// More descriptors than the device lets a message have.
    #[error("the descriptor chain at {head} has more than {limit} descriptors")]
    TooLong {
        /// Index of the chain's first descriptor.
        head: u16,
        /// The most that the device takes.
        limit: usize,
    },
    /// A buffer for the device to read follows one for it to write (2.7.4.2).
    #[error("the descriptor chain at {head} has a readable buffer after a writable one")]
    Order {
        /// Index of the chain's first descriptor.
        head: u16,
    },
}

/// An access to a message's bytes that could not be made.
#[derive(Debug, Error)]
pub enum SegmentError {
    /// The message is shorter than that.
    #[error("{len} bytes at offset {offset} of a message of {total} bytes")]
    OutOfRange {
        /// Offset in the message.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Length of the message.
        total: u64,
    },
    /// A buffer lies outside of guest memory.
    #[error("virtio buffer outside of guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// Pieces of guest memory that make up one string of bytes.
#[derive(Debug, Default, Clone)]
pub struct Segments {
    parts: Vec<(GuestAddress, u32)>,
    total: u64,
}

impl Segments {
    /// Number of bytes in all.
    pub fn len(&self) -> u64 {
        self.total
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    fn clear(&mut self) {
        self.parts.clear();
        self.total = 0;
    }

    /// Appends `len` bytes of guest memory at `address`.
    pub fn push(&mut self, address: GuestAddress, len: u32) {
        self.parts.push((address, len));
        self.total += u64::from(len);
    }

    /// Calls `visit` with each piece of the `len` bytes from `offset`, in
    /// order, as long as it returns `true`.
    ///
    /// # Errors
    /// The range passes the end, or some of it lies outside of guest memory;
    /// `visit` may have been called for what comes before.
    pub fn visit<'m>(
        &self,
        memory: &'m GuestMemory,
        offset: u64,
        len: u64,
        mut visit: impl FnMut(GuestSlice<'m>) -> bool,
    ) -> Result<(), SegmentError> {
        let end = offset.checked_add(len).filter(|&end| end <= self.total);
        let Some(end) = end else {
            return Err(SegmentError::OutOfRange {
                offset,
                len,
                total: self.total,
            });
        };
        let mut start = 0;
        for &(address, part_len) in &self.parts {
            let part_end = start + u64::from(part_len);
            let (from, to) = (offset.max(start), end.min(part_end));
            if from < to {
                let address = GuestAddress(
                    address
                        .0
                        .checked_add(from - start)
                        .ok_or(GuestMemoryError::InvalidBackendAddress)?,
                );
                // At most 4 GiB: the length of one part.
                let count = (to - from) as usize;
                for slice in memory.get_slices(address, count, Permissions::No)? {
                    if !visit(slice?) {
                        return Ok(());
                    }
                }
            }
            start = part_end;
        }
        Ok(())
    }

    /// Fills `bytes` from `offset` on.
    ///
    /// # Errors
    /// See [`Self::visit`].
    pub fn read(
        &self,
        memory: &GuestMemory,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<(), SegmentError> {
        let mut done = 0;
        self.visit(memory, offset, bytes.len() as u64, |slice| {
            let end = done + slice.len();
            slice.copy_to(&mut bytes[done..end]);
            done = end;
            true
        })
    }

    /// Puts `bytes` at `offset`.
    ///
    /// # Errors
    /// See [`Self::visit`].
    pub fn write(
        &self,
        memory: &GuestMemory,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), SegmentError> {
        let mut done = 0;
        self.visit(memory, offset, bytes.len() as u64, |slice| {
            let end = done + slice.len();
            slice.copy_from(&bytes[done..end]);
            done = end;
            true
        })
    }
}

/// One message: the bytes that the driver gives and the room for the answer.
/// Kept and filled again for each chain, so that it does not allocate.
#[derive(Debug, Default)]
pub struct Message {
    /// What the device reads.
    pub readable: Segments,
    /// What the device writes.
    pub writable: Segments,
}

impl Message {
    /// Takes the descriptors of `chain`, of which there may be `limit`.
    ///
    /// # Errors
    /// The chain breaks the rules for drivers: see [`ChainError`].
    pub fn fill(
        &mut self,
        mut chain: DescriptorChain<&GuestMemory>,
        limit: usize,
    ) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        let head = chain.head_index();
        let mut descriptors = 0;
        // The iterator ends silently at whatever it does not like; only a last
        // descriptor without successor says that it came to the real end.
        let mut complete = false;
        for descriptor in chain.by_ref() {
            descriptors += 1;
            if descriptors > limit {
                return Err(ChainError::TooLong { head, limit });
            }
            complete = !descriptor.has_next();
            if descriptor.is_write_only() {
                self.writable.push(descriptor.addr(), descriptor.len());
            } else if self.writable.parts.is_empty() {
                self.readable.push(descriptor.addr(), descriptor.len());
            } else {
                return Err(ChainError::Order { head });
            }
        }
        if complete {
            Ok(())
        } else {
            Err(ChainError::Broken { head, descriptors })
        }
    }
}

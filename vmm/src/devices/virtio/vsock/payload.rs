//! The data part of packets, in guest memory.

use std::io;
use std::os::unix::net::UnixStream;

use vm_memory::{ReadVolatile, VolatileMemoryError, WriteVolatile};

use super::header::HEADER_LEN;
use crate::devices::virtio::chain::{SegmentError, Segments};
use crate::memory::{GuestMemory, GuestSlice};

/// The data that came with a packet of the guest's. The whole range has been
/// found to lie in guest memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Payload<'a> {
    segments: &'a Segments,
    memory: &'a GuestMemory,
    len: u32,
}

impl<'a> Payload<'a> {
    /// The `len` bytes that follow the header in `segments`.
    ///
    /// # Errors
    /// There are not so many, or not in guest memory.
    pub(super) fn new(
        segments: &'a Segments,
        memory: &'a GuestMemory,
        len: u32,
    ) -> Result<Self, SegmentError> {
        segments.visit(memory, HEADER_LEN as u64, u64::from(len), |_| true)?;
        Ok(Self {
            segments,
            memory,
            len,
        })
    }

    /// Number of bytes.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Writes to `stream` until it takes no more; returns how much it took.
    /// An error that comes after some of it will come again.
    pub(super) fn send(&self, mut stream: &UnixStream) -> io::Result<usize> {
        let (mut sent, mut result) = (0, Ok(()));
        let visited = self.visit(0, |slice| match retry(|| stream.write_volatile(slice)) {
            Ok(count) => {
                sent += count;
                count == slice.len()
            }
            Err(error) => {
                result = Err(error);
                false
            }
        });
        result = result.and(visited);
        if sent > 0 {
            Ok(sent)
        } else {
            result.map(|()| 0)
        }
    }

    /// The bytes from `offset` on.
    pub(super) fn copy(&self, offset: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; (self.len as usize).saturating_sub(offset)];
        let at = (HEADER_LEN + offset) as u64;
        self.segments
            .read(self.memory, at, &mut bytes)
            .map_err(io::Error::other)?;
        Ok(bytes)
    }

    fn visit(
        &self,
        offset: usize,
        mut visit: impl FnMut(&GuestSlice<'a>) -> bool,
    ) -> io::Result<()> {
        let len = u64::from(self.len) - offset as u64;
        let at = (HEADER_LEN + offset) as u64;
        self.segments
            .visit(self.memory, at, len, |slice| visit(&slice))
            .map_err(io::Error::other)
    }
}

/// The room that the guest gave for a packet to come. All of it has been
/// found to lie in guest memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room<'a> {
    segments: &'a Segments,
    memory: &'a GuestMemory,
    len: u32,
}

impl<'a> Room<'a> {
    /// The room that is in `segments` after the header.
    ///
    /// # Errors
    /// There is none, or it lies outside of guest memory.
    pub(super) fn new(
        segments: &'a Segments,
        memory: &'a GuestMemory,
    ) -> Result<Self, SegmentError> {
        let total = segments.len();
        let header = HEADER_LEN as u64;
        if total <= header {
            return Err(SegmentError::OutOfRange {
                offset: header,
                len: 1,
                total,
            });
        }
        segments.visit(memory, 0, total, |_| true)?;
        let len = u32::try_from(total - header).unwrap_or(u32::MAX);
        Ok(Self {
            segments,
            memory,
            len,
        })
    }

    /// Number of bytes of data that there is room for, at least one.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Reads up to `max` bytes from `stream`; 0 is the end of the stream.
    pub(super) fn receive(&self, mut stream: &UnixStream, max: u32) -> io::Result<u32> {
        let (mut received, mut result) = (0_usize, Ok(()));
        let len = u64::from(max.min(self.len));
        let visited =
            self.segments.visit(
                self.memory,
                HEADER_LEN as u64,
                len,
                |mut slice| match retry(|| stream.read_volatile(&mut slice)) {
                    Ok(count) => {
                        received += count;
                        count == slice.len()
                    }
                    Err(error) => {
                        result = Err(error);
                        false
                    }
                },
            );
        result = result.and(visited.map_err(io::Error::other));
        if received == 0 {
            result?;
        }
        // At most `max`.
        Ok(received as u32)
    }

    /// Puts `bytes`, of which there are at most [`Self::len`].
    pub(super) fn put(&self, bytes: &[u8]) -> io::Result<()> {
        self.segments
            .write(self.memory, HEADER_LEN as u64, bytes)
            .map_err(io::Error::other)
    }
}

fn retry(mut transfer: impl FnMut() -> Result<usize, VolatileMemoryError>) -> io::Result<usize> {
    loop {
        match transfer() {
            Ok(count) => return Ok(count),
            Err(VolatileMemoryError::IOError(error)) => {
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

//! What is to be sent on a connection.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use crate::protocol::{Frame, Message, frame};

/// Above this many unsent bytes nothing is read that would add to them.
pub(crate) const HIGH_WATER: usize = 256 * 1024;

/// Bytes to be sent.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    pub(crate) fn push(&mut self, id: u32, message: Message) {
        Frame::new(id, message).encode(&mut self.bytes);
    }

    /// A data frame of kind [`frame::STDOUT`] or [`frame::STDERR`].
    pub(crate) fn push_data(&mut self, kind: u8, id: u32, bytes: &[u8]) {
        frame::encode_data(kind, id, bytes, &mut self.bytes);
    }

    /// Bytes not yet sent.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Whether more output may be read.
    pub(crate) fn has_room(&self) -> bool {
        self.len() < HIGH_WATER
    }

    /// Sends what the socket takes.
    pub(crate) fn flush(&mut self, socket: impl AsFd) -> Result<(), Errno> {
        while self.len() > 0 {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match send(&socket, &self.bytes[self.sent..], flags) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    // Keep the buffer from growing while a slow peer takes it
                    // piecemeal.
                    if self.sent >= HIGH_WATER {
                        self.bytes.drain(..self.sent);
                        self.sent = 0;
                    }
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        // A connection that moved a file gives its buffer back.
        self.bytes.shrink_to(8 * 1024);
        Ok(())
    }
}

//! What a driver asks of a block device (virtio 1.2, 5.2.6).
//!
//! Pure: looks at guest memory and nothing else. A request is a header of 16
//! bytes (`type` u32, reserved u32, `sector` u64, little-endian), data one way
//! or the other, and a status byte at the very end.

use thiserror::Error;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use crate::devices::virtio::chain::{Message, SegmentError};
use crate::memory::GuestMemory;

/// Bytes in a sector, whatever the block size (5.2.4).
pub const SECTOR_SIZE: u64 = 512;
/// Length of the identification string that `GET_ID` returns.
pub const ID_LEN: u64 = 20;

const HEADER_LEN: u64 = 16;
const STATUS_LEN: u64 = 1;

/// What a request is about. Offsets are in bytes from the start of the disk;
/// the range is inside of the disk and whole sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Read `len` bytes at `offset` into the writable part.
    Read {
        /// Where on the disk.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// Write `len` bytes of the readable part, after the header, at `offset`.
    Write {
        /// Where on the disk.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// Make all that was written durable.
    Flush,
    /// Write the device's identification string, [`ID_LEN`] bytes.
    GetId,
    /// Nothing: answer with this status.
    Reject(Status),
}

/// The status byte of a finished request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// Impossible, or the host's file could not do it.
    IoError,
    /// Not a request that this device knows.
    Unsupported,
}

impl Status {
    /// The byte that the driver reads.
    pub fn code(self) -> u8 {
        let code = match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoError => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        code as u8
    }
}

/// A message that is not even a request: there is nowhere to put a status, or
/// nothing to read a header from. The device stops and asks for a reset.
#[derive(Debug, Error)]
pub enum RequestError {
    /// The header is missing or out of reach.
    #[error("block request without header: {0}")]
    Header(#[source] SegmentError),
    /// The status byte is missing or out of reach.
    #[error("block request without room for its status: {0}")]
    Status(#[source] SegmentError),
}

/// Offset in the readable part at which the data to be written begins.
pub const WRITE_DATA_OFFSET: u64 = HEADER_LEN;

/// Finds out what `message` asks of a disk of `capacity` bytes.
///
/// # Errors
/// See [`RequestError`]. Whatever else is wrong is [`Operation::Reject`].
pub fn parse(
    message: &Message,
    memory: &GuestMemory,
    capacity: u64,
    read_only: bool,
) -> Result<Operation, RequestError> {
    let mut header = [0; HEADER_LEN as usize];
    message
        .readable
        .read(memory, 0, &mut header)
        .map_err(RequestError::Header)?;
    let status_offset = status_offset(message)?;
    message
        .writable
        .visit(memory, status_offset, STATUS_LEN, |_| true)
        .map_err(RequestError::Status)?;

    let [t0, t1, t2, t3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
    let kind = u32::from_le_bytes([t0, t1, t2, t3]);
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);

    Ok(match kind {
        VIRTIO_BLK_T_IN => match range(sector, status_offset, capacity) {
            Some((offset, len)) => Operation::Read { offset, len },
            None => Operation::Reject(Status::IoError),
        },
        VIRTIO_BLK_T_OUT => match range(sector, message.readable.len() - HEADER_LEN, capacity) {
            Some((offset, len)) if !read_only => Operation::Write { offset, len },
            _ => Operation::Reject(Status::IoError),
        },
        VIRTIO_BLK_T_FLUSH => Operation::Flush,
        VIRTIO_BLK_T_GET_ID if status_offset < ID_LEN => Operation::Reject(Status::IoError),
        VIRTIO_BLK_T_GET_ID => Operation::GetId,
        _ => Operation::Reject(Status::Unsupported),
    })
}

/// Writes the status byte of `message`.
///
/// # Errors
/// There is no room for it in guest memory.
pub fn finish(message: &Message, memory: &GuestMemory, status: Status) -> Result<(), RequestError> {
    let offset = status_offset(message)?;
    message
        .writable
        .write(memory, offset, &[status.code()])
        .map_err(RequestError::Status)
}

fn status_offset(message: &Message) -> Result<u64, RequestError> {
    let total = message.writable.len();
    let missing = SegmentError::OutOfRange {
        offset: 0,
        len: STATUS_LEN,
        total,
    };
    total
        .checked_sub(STATUS_LEN)
        .ok_or(RequestError::Status(missing))
}

/// The byte range of `len` bytes from `sector`, if it is whole sectors and
/// inside of the disk.
fn range(sector: u64, len: u64, capacity: u64) -> Option<(u64, u64)> {
    let offset = sector.checked_mul(SECTOR_SIZE)?;
    let end = offset.checked_add(len)?;
    (len.is_multiple_of(SECTOR_SIZE) && end <= capacity).then_some((offset, len))
}

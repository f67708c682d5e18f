//! A raw image file as a disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

use super::request::{self, ID_LEN, Operation, RequestError, SECTOR_SIZE, Status};
use super::vectored::{Direction, Vectored};
use crate::devices::virtio::chain::Message;
use crate::memory::GuestMemory;

/// Why an image cannot be a disk.
#[derive(Debug, Error)]
pub enum DiskError {
    /// It cannot be opened or measured.
    #[error("cannot open disk image {path} {mode}: {source}", path = path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// "read-only" or "for reading and writing".
        mode: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// Another machine writes to it, or it is to be written while others use it.
    #[error(
        "disk image {path} is in use by another machine: stop that one, or give this one an \
         image of its own", path = path.display()
    )]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// It is empty, or not a whole number of sectors.
    #[error(
        "disk image {path} has {len} bytes, which is not a positive multiple of 512: is it a raw \
         image, and complete?", path = path.display()
    )]
    Size {
        /// The image.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
    /// The identification string is too long.
    #[error("disk serial {serial:?} is longer than {ID_LEN} bytes")]
    Serial {
        /// The string.
        serial: String,
    },
}

/// An open image.
#[derive(Debug)]
pub struct Disk {
    file: File,
    capacity: u64,
    read_only: bool,
    id: [u8; ID_LEN as usize],
}

impl Disk {
    /// Opens the raw image at `path` and locks it (`flock`): shared if
    /// `read_only`, else for this process alone. `serial` is what the guest
    /// sees as the disk's serial number, at most [`ID_LEN`] bytes.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open(path: &Path, read_only: bool, serial: &str) -> Result<Self, DiskError> {
        let mut id = [0; ID_LEN as usize];
        let Some(room) = id.get_mut(..serial.len()) else {
            return Err(DiskError::Serial {
                serial: serial.to_owned(),
            });
        };
        room.copy_from_slice(serial.as_bytes());

        let (mode, lock) = if read_only {
            ("read-only", FlockOperation::NonBlockingLockShared)
        } else {
            (
                "for reading and writing",
                FlockOperation::NonBlockingLockExclusive,
            )
        };
        let failed = |source| DiskError::Open {
            path: path.to_owned(),
            mode,
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(failed)?;
        match flock(&file, lock) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(DiskError::InUse {
                    path: path.to_owned(),
                });
            }
            Err(error) => return Err(failed(error.into())),
        }
        // Works for block devices as well, whose metadata have no length.
        let capacity = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if capacity == 0 || !capacity.is_multiple_of(SECTOR_SIZE) {
            return Err(DiskError::Size {
                path: path.to_owned(),
                len: capacity,
            });
        }
        Ok(Self {
            file,
            capacity,
            read_only,
            id,
        })
    }

    /// Another descriptor of the open image.
    ///
    /// # Errors
    /// The process is out of file descriptors.
    pub fn try_clone_file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Size in bytes, a multiple of [`SECTOR_SIZE`].
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Does what `message` asks, writes its status, and returns how many bytes
    /// of the message's writable part count as written. With `write_through`,
    /// a write is durable before it is answered.
    ///
    /// # Errors
    /// The message is not a request; whatever else goes wrong is in the status.
    pub(super) fn serve(
        &self,
        message: &Message,
        memory: &GuestMemory,
        vectored: &mut Vectored,
        write_through: bool,
    ) -> Result<u32, RequestError> {
        let operation = request::parse(message, memory, self.capacity, self.read_only)?;
        let (written, result) = match operation {
            Operation::Read { offset, len } => {
                let segments = &message.writable;
                let range = (0, len);
                let file = &self.file;
                (
                    len,
                    vectored.transfer(Direction::Read, file, offset, memory, segments, range),
                )
            }
            Operation::Write { offset, len } => {
                let segments = &message.readable;
                let range = (request::WRITE_DATA_OFFSET, len);
                let file = &self.file;
                let result =
                    vectored.transfer(Direction::Write, file, offset, memory, segments, range);
                (
                    0,
                    result.and_then(|()| if write_through { self.flush() } else { Ok(()) }),
                )
            }
            Operation::Flush => (0, self.flush()),
            Operation::GetId => {
                let result = message.writable.write(memory, 0, &self.id);
                (ID_LEN, result.map_err(io::Error::other))
            }
            Operation::Reject(status) => {
                request::finish(message, memory, status)?;
                return Ok(1);
            }
        };
        let (written, status) = match result {
            Ok(()) => (written, Status::Ok),
            Err(_) => (0, Status::IoError),
        };
        request::finish(message, memory, status)?;
        // A chain is at most 4 GiB long, so this only saturates for one that
        // is exactly that.
        Ok(u32::try_from(written + 1).unwrap_or(u32::MAX))
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only {
            Ok(())
        } else {
            self.file.sync_data()
        }
    }
}

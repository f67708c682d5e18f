//! virtio-blk (virtio 1.2, 5.2): raw images as disks.
//!
//! One queue, served by a thread of its own from activation to reset, so that
//! a slow disk holds up neither the event loop nor other disks. Data go
//! between file and guest memory without a copy of ours in between.

pub mod request;

mod disk;
mod vectored;
mod worker;

use std::io;
use std::mem;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::eventfd::EventFd;

pub use self::disk::{Disk, DiskError};
use self::request::SECTOR_SIZE;
use self::worker::{Server, Worker};
use super::ring::Ring;
use super::state::{BlockState, DeviceState, DeviceStateError, QueueProgress};
use super::{ActivateError, Activation, VirtioDevice};

/// Entries in the queue. The guest keeps memory for each request that fits,
/// and one synchronous worker gains nothing from a deeper queue.
const QUEUE_SIZE: u16 = 128;

/// Data segments in one request: all of the queue but for header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// Length of the configuration space up to and with `blk_size` (5.2.4): what
/// comes after it belongs to features that are not offered.
const CONFIG_LEN: usize = 24;

/// Why a block device could not be made.
#[derive(Debug, Error)]
pub enum BlockError {
    /// The image is not usable.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The process is out of file descriptors.
    #[error("cannot create an event for a block device: {0}")]
    Event(#[source] io::Error),
}

/// A block device.
#[derive(Debug)]
pub struct Block {
    disk: Arc<Disk>,
    config: [u8; CONFIG_LEN],
    queue_events: [Arc<EventFd>; 1],
    work: Work,
    paused: bool,
}

/// What becomes of the queue.
#[derive(Debug)]
enum Work {
    /// There is none, or it was given up.
    None,
    /// It is served.
    Running(Worker),
    /// It waits for the end of a pause.
    Held(Box<Server>),
}

impl Block {
    /// A disk with the contents of the raw image at `path`: see [`Disk::open`].
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn new(path: &Path, read_only: bool, serial: &str) -> Result<Self, BlockError> {
        let disk = Disk::open(path, read_only, serial)?;
        let mut config = [0; CONFIG_LEN];
        config[0..8].copy_from_slice(&(disk.capacity() / SECTOR_SIZE).to_le_bytes());
        config[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
        config[20..24].copy_from_slice(&(SECTOR_SIZE as u32).to_le_bytes());
        // Blocking: the worker has nothing else to wait for.
        let event = EventFd::new(0).map_err(BlockError::Event)?;
        Ok(Self {
            disk: Arc::new(disk),
            config,
            queue_events: [Arc::new(event)],
            work: Work::None,
            paused: false,
        })
    }
}

impl Block {
    /// The disk behind the device.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Gives the queue that is held to a worker.
    fn start(&mut self) -> Result<(), ActivateError> {
        self.work = match mem::replace(&mut self.work, Work::None) {
            Work::Held(server) => {
                let event = Arc::clone(&self.queue_events[0]);
                Work::Running(Worker::start(*server, event).map_err(ActivateError::Worker)?)
            }
            other => other,
        };
        Ok(())
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let read_only = if self.disk.is_read_only() {
            1 << VIRTIO_BLK_F_RO
        } else {
            0
        };
        read_only
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_F_VERSION_1
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn queue_events(&self) -> &[Arc<EventFd>] {
        &self.queue_events
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            features,
            queues,
            interrupt,
        } = activation;
        for queue in queues {
            let write_through = features & (1 << VIRTIO_BLK_F_FLUSH) == 0;
            let disk = Arc::clone(&self.disk);
            let server = Server::new(
                disk,
                Ring::new(queue, memory.clone()),
                interrupt.clone(),
                write_through,
            );
            self.work = Work::Held(Box::new(server));
        }
        if self.paused { Ok(()) } else { self.start() }
    }

    fn reset(&mut self) {
        if let Work::Running(worker) = mem::replace(&mut self.work, Work::None) {
            worker.stop();
        }
    }

    fn pause(&mut self) {
        self.paused = true;
        self.work = match mem::replace(&mut self.work, Work::None) {
            Work::Running(worker) => worker
                .stop()
                .map_or(Work::None, |server| Work::Held(Box::new(server))),
            other => other,
        };
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        // The worker looks at its queue before it waits for a notification.
        self.start()?;
        self.paused = false;
        Ok(())
    }

    fn progress(&self) -> Option<Vec<QueueProgress>> {
        match &self.work {
            Work::Held(server) => Some(vec![server.ring.progress()]),
            _ => None,
        }
    }

    fn save(&self) -> DeviceState {
        DeviceState::Block(BlockState {
            capacity: self.disk.capacity(),
            read_only: self.disk.is_read_only(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let DeviceState::Block(saved) = state else {
            return Err(DeviceStateError::kind("a block device", state));
        };
        if saved.capacity != self.disk.capacity() {
            return Err(DeviceStateError::Capacity {
                saved: saved.capacity,
                found: self.disk.capacity(),
            });
        }
        if saved.read_only != self.disk.is_read_only() {
            return Err(DeviceStateError::ReadOnly {
                saved: saved.read_only,
            });
        }
        Ok(())
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.reset();
    }
}

#[cfg(test)]
mod tests;

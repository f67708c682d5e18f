//! The thread that serves a disk's queue.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use super::QUEUE_SIZE;
use super::disk::Disk;
use super::request::RequestError;
use super::vectored::Vectored;
use crate::devices::virtio::Interrupt;
use crate::devices::virtio::chain::{ChainError, Message};
use crate::devices::virtio::ring::{Ring, RingError};

/// After how many finished requests the driver is told at the latest, while
/// there are more to do.
const INTERRUPT_BATCH: u32 = 8;

/// Stack of the thread: it recurses nowhere and keeps its buffers on the heap.
const STACK_SIZE: usize = 128 << 10;

/// Why a worker gives its queue up and asks the driver for a reset.
#[derive(Debug, Error)]
pub(super) enum QueueError {
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// What the thread works with.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) disk: Arc<Disk>,
    pub(super) ring: Ring,
    pub(super) interrupt: Arc<Interrupt>,
    /// The driver did not accept `VIRTIO_BLK_F_FLUSH`, so it cannot ask for
    /// durability and must get it with each write.
    pub(super) write_through: bool,
    message: Message,
    vectored: Vectored,
}

impl Server {
    pub(super) fn new(
        disk: Arc<Disk>,
        ring: Ring,
        interrupt: Arc<Interrupt>,
        write_through: bool,
    ) -> Self {
        let (message, vectored) = (Message::default(), Vectored::default());
        Self {
            disk,
            ring,
            interrupt,
            write_through,
            message,
            vectored,
        }
    }

    /// Serves what is in the queue until it is empty or `stop` is set.
    pub(super) fn drain(&mut self, stop: &AtomicBool) -> Result<(), QueueError> {
        loop {
            self.ring.disable_notification()?;
            let mut unannounced = 0;
            while !stop.load(Ordering::Acquire) && self.serve_one()? {
                unannounced += 1;
                if unannounced == INTERRUPT_BATCH {
                    self.announce()?;
                    unannounced = 0;
                }
            }
            if unannounced > 0 {
                self.announce()?;
            }
            if stop.load(Ordering::Acquire) || !self.ring.enable_notification()? {
                return Ok(());
            }
        }
    }

    fn serve_one(&mut self) -> Result<bool, QueueError> {
        let Some(chain) = self.ring.pop()? else {
            return Ok(false);
        };
        let head = chain.head_index();
        self.message.fill(chain, usize::from(QUEUE_SIZE))?;
        let memory = self.ring.memory();
        let written = self.disk.serve(
            &self.message,
            memory,
            &mut self.vectored,
            self.write_through,
        )?;
        self.ring.push_used(head, written)?;
        Ok(true)
    }

    fn announce(&mut self) -> Result<(), QueueError> {
        if self.ring.needs_interrupt()? {
            self.interrupt.used_buffer();
        }
        Ok(())
    }
}

/// A running thread.
#[derive(Debug)]
pub(super) struct Worker {
    thread: JoinHandle<Option<Server>>,
    stop: Arc<AtomicBool>,
    queue_event: Arc<EventFd>,
}

impl Worker {
    /// Starts a thread that serves the queue whenever `queue_event`, which
    /// must be a blocking one, is written.
    pub(super) fn start(mut server: Server, queue_event: Arc<EventFd>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, event) = (Arc::clone(&stop), Arc::clone(&queue_event));
        let thread = thread::Builder::new()
            .name("block".to_owned())
            .stack_size(STACK_SIZE)
            .spawn(move || {
                if let Err(error) = run(&mut server, &event, &stopped) {
                    eprintln!("virtio block device stopped: {error}");
                    server.interrupt.device_needs_reset();
                    return None;
                }
                Some(server)
            })?;
        Ok(Self {
            thread,
            stop,
            queue_event,
        })
    }

    /// Ends the thread after the request that it is at, and waits for that.
    /// Returns what it worked with, unless it had given its queue up.
    pub(super) fn stop(self) -> Option<Server> {
        self.stop.store(true, Ordering::Release);
        // Fails only on a full counter, which wakes the thread as well.
        let _ = self.queue_event.write(1);
        // Fails if the thread panicked: then it has ended, too.
        self.thread.join().ok().flatten()
    }
}

fn run(server: &mut Server, queue_event: &EventFd, stop: &AtomicBool) -> Result<(), QueueError> {
    loop {
        // First of all: requests may have been made before the thread was there.
        server.drain(stop)?;
        if stop.load(Ordering::Acquire) {
            return Ok(());
        }
        // Fails when a signal comes; looking at the queue once more is harmless.
        let _ = queue_event.read();
    }
}

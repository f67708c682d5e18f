//! virtio-vsock (virtio 1.2, 5.10): sockets between the guest and the host,
//! without a network.
//!
//! On the host's side the connections are Unix sockets. A client connects to
//! the device's socket, says `CONNECT <port>\n`, and once the guest has
//! accepted hears `OK <host port>\n`; from then on the bytes are the guest's.
//! When the guest connects to a port of the host (CID 2), the device connects
//! to the Unix socket whose path is its own, `_` and the port. Some host ports
//! may instead be served in this process, by a [`HostPort`].
//!
//! The device has no thread: the event loop drives it through
//! [`VsockSubscriber`].

mod connection;
mod core;
mod credit;
mod greeting;
pub mod header;
mod host_port;
mod listener;
mod muxer;
mod payload;
mod slots;
mod subscriber;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::core::{Core, Queues};
pub use self::host_port::{HostConnection, HostPort, Outbox};
pub use self::listener::ListenError;
pub use self::muxer::CONNECTIONS_MAX;
use self::muxer::Muxer;
pub use self::subscriber::VsockSubscriber;
use super::ring::Ring;
use super::state::{DeviceState, DeviceStateError, QueueProgress, VsockState};
use super::{ActivateError, Activation, VirtioDevice};

/// The host's context.
pub const HOST_CID: u64 = 2;

/// The most bytes that a [`HostPort`] may have unsent on one connection.
pub const PORT_BACKLOG_MAX: usize = 64 << 10;

/// Entries in the receive and the transmit queue. A Linux guest fills the
/// receive queue with pages as it boots: enough to keep data flowing, no more.
const QUEUE_SIZE: u16 = 64;

/// Entries in the event queue: Linux puts 8 buffers there.
const EVENT_QUEUE_SIZE: u16 = 8;

/// What a vsock device is made of.
pub struct VsockConfig {
    /// The guest's context: 3 or more, and below 2^32.
    pub guest_cid: u64,
    /// Where to make the device's Unix socket.
    pub path: PathBuf,
    /// Ports of the host that are served in this process.
    pub ports: BTreeMap<u32, Box<dyn HostPort>>,
}

/// Why a vsock device could not be made.
#[derive(Debug, Error)]
pub enum VsockError {
    /// The CID is reserved or too large.
    #[error("guest CID {0} is not possible: use 3 or more, below 4294967295")]
    Cid(u64),
    /// The Unix socket could not be made.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The process is out of file descriptors.
    #[error("cannot create events for the vsock device: {0}")]
    Event(#[source] io::Error),
}

/// A vsock device.
#[derive(Debug)]
pub struct Vsock {
    config: [u8; 8],
    queue_events: [Arc<EventFd>; 3],
    core: Arc<Mutex<Core>>,
}

impl Vsock {
    /// Makes the device, whose Unix socket comes with [`VsockHandle::listen`].
    ///
    /// # Errors
    /// See [`VsockError`].
    pub fn new(config: VsockConfig) -> Result<Self, VsockError> {
        let VsockConfig {
            guest_cid,
            path,
            ports,
        } = config;
        if guest_cid <= HOST_CID || guest_cid >= u64::from(u32::MAX) {
            return Err(VsockError::Cid(guest_cid));
        }
        let event = || {
            EventFd::new(EFD_NONBLOCK)
                .map(Arc::new)
                .map_err(VsockError::Event)
        };
        let queue_events = [event()?, event()?, event()?];
        let muxer = Muxer::new(guest_cid, &path, ports)?;
        let [_, transmit_event, _] = &queue_events;
        let core = Core::new(muxer, Arc::clone(transmit_event));
        Ok(Self {
            config: guest_cid.to_le_bytes(),
            queue_events,
            core: Arc::new(Mutex::new(core)),
        })
    }

    /// What drives the device, to be given to the event loop. One is enough.
    pub fn subscriber(&self) -> VsockSubscriber {
        VsockSubscriber::new(Arc::clone(&self.core), self.queue_events.clone())
    }

    /// For other threads that have something to say to the guest.
    pub fn handle(&self) -> VsockHandle {
        VsockHandle {
            core: Arc::clone(&self.core),
        }
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        // Without any feature of its own it has streams, and only these (5.10.3).
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_F_VERSION_1
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE, EVENT_QUEUE_SIZE]
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
            queues,
            interrupt,
            ..
        } = activation;
        let mut rings = queues
            .into_iter()
            .map(|queue| Ring::new(queue, memory.clone()));
        // The transport gives as many queues as the device has sizes for.
        if let (Some(receive), Some(transmit), Some(event)) =
            (rings.next(), rings.next(), rings.next())
        {
            lock(&self.core).activate(Queues {
                receive,
                transmit,
                event,
                interrupt,
            });
        }
        Ok(())
    }

    fn reset(&mut self) {
        lock(&self.core).reset();
    }

    fn pause(&mut self) {
        lock(&self.core).pause();
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        lock(&self.core).resume();
        Ok(())
    }

    fn progress(&self) -> Option<Vec<QueueProgress>> {
        lock(&self.core).progress()
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock(VsockState {})
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let DeviceState::Vsock(VsockState {}) = state else {
            return Err(DeviceStateError::kind("a vsock device", state));
        };
        // The other ends of its connections are with another process, and its
        // context identifier may be another one.
        lock(&self.core).reset_transport();
        Ok(())
    }
}

/// Lets other threads use the connections to in-process ports.
///
/// Not to be used from within a [`HostPort`]: see there.
#[derive(Debug, Clone)]
pub struct VsockHandle {
    core: Arc<Mutex<Core>>,
}

impl VsockHandle {
    /// Makes the device's Unix socket with mode 0600. Its file is removed when
    /// device, subscriber and handles have all been dropped.
    ///
    /// # Errors
    /// See [`VsockError`].
    pub fn listen(&self) -> Result<(), VsockError> {
        lock(&self.core).muxer.listen()
    }

    /// Sends `bytes` to the guest. `false` if the connection has ended, or
    /// [`PORT_BACKLOG_MAX`] would be passed.
    pub fn send(&self, connection: HostConnection, bytes: &[u8]) -> bool {
        let mut core = lock(&self.core);
        let sent = core.muxer.send(connection, bytes);
        core.pump();
        sent
    }

    /// Ends all connections and tells the guest that they are gone
    /// (`VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`), as is due when it goes on from
    /// a snapshot.
    pub fn reset_transport(&self) {
        lock(&self.core).reset_transport();
    }
}

/// A thread that panicked in here leaves connections in a state that is wrong
/// for one guest, but memory-safe: better than taking the others down.
fn lock(core: &Mutex<Core>) -> MutexGuard<'_, Core> {
    core.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

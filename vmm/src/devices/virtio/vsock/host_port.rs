//! Host ports that are served in this process instead of by a Unix socket.

use std::collections::BTreeMap;

/// One connection of the guest's to a [`HostPort`]; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostConnection(pub(crate) u64);

/// What a [`HostPort`] does in answer to an event.
#[derive(Debug, Default)]
pub struct Outbox {
    pub(super) bytes: Vec<u8>,
    pub(super) close: bool,
}

impl Outbox {
    /// Sends `bytes` to the guest on the connection that the event is about.
    /// What passes [`super::PORT_BACKLOG_MAX`] unsent bytes ends the connection.
    pub fn send(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Ends the connection, after what was sent.
    pub fn close(&mut self) {
        self.close = true;
    }
}

/// Serves connections from the guest to one port of the host.
///
/// Called in the thread of the event loop, or of a vCPU when the driver resets
/// the device, with the device locked: implementations must be quick and must
/// not use a [`super::VsockHandle`]; they answer through the [`Outbox`].
pub trait HostPort: Send {
    /// The guest asked for `connection`, and gets it.
    fn on_connect(&mut self, connection: HostConnection, out: &mut Outbox);

    /// The guest sent `data`, which is never empty. Boundaries mean nothing.
    fn on_data(&mut self, connection: HostConnection, data: &[u8], out: &mut Outbox);

    /// The guest will send nothing more on `connection`, which is at its end.
    /// Called once for each connection that did not end by [`Outbox::close`].
    fn on_close(&mut self, connection: HostConnection);
}

/// All ports that are served in the process.
pub(super) type HostPorts = BTreeMap<u32, Box<dyn HostPort>>;

//! From the guest to the host's side: packets, and what waits for the socket.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::Shutdown;

use super::{Connection, Peer, Pending, State};
use crate::devices::virtio::vsock::credit::{RECEIVE_BUFFER, Violation};
use crate::devices::virtio::vsock::greeting;
use crate::devices::virtio::vsock::header::{
    Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND,
};
use crate::devices::virtio::vsock::host_port::{HostPorts, Outbox};
use crate::devices::virtio::vsock::payload::Payload;

impl Connection {
    /// Takes a packet of the guest's for this connection; its addresses and
    /// type have been checked.
    pub(in super::super) fn on_packet(
        &mut self,
        op: Op,
        header: &Header,
        payload: Payload<'_>,
        ports: &mut HostPorts,
    ) {
        if op == Op::Reset {
            return self.on_reset();
        }
        let credit = self.credit.update_peer(header.buf_alloc, header.fwd_cnt);
        if self.credit.available() > 0 {
            self.credit_requested = false;
        }
        let flags_allowed = if op == Op::Shutdown { SHUTDOWN_BOTH } else { 0 };
        if credit.is_err() || header.flags & !flags_allowed != 0 {
            return self.kill();
        }
        match (self.state, op) {
            (State::Requested, Op::Response) => self.on_response(),
            (State::Established, Op::Data) => {
                if self.on_data(payload, ports).is_err() {
                    self.kill();
                }
            }
            (State::Established, Op::Shutdown) => self.on_shutdown(header.flags),
            (State::Established, Op::CreditRequest) => self.pending.add(Pending::CREDIT_UPDATE),
            // Done above; or it is over, and the guest will hear of it.
            (State::Established, Op::CreditUpdate) | (State::Dead, _) => {}
            _ => self.kill(),
        }
    }

    fn on_reset(&mut self) {
        let has_rest = self.guest_shutdown & SHUTDOWN_SEND != 0 && !self.backlog.is_empty();
        if self.state == State::Established && has_rest && self.socket().is_some() {
            self.state = State::Draining;
            self.pending = Pending::default();
        } else {
            self.end();
        }
    }

    fn on_response(&mut self) {
        let Peer::Socket(stream) = &self.peer else {
            return self.kill();
        };
        let mut stream = stream;
        let line = greeting::accepted(self.key.host_port);
        // The first bytes ever to go to this client: there is room for them.
        match stream.write(line.as_bytes()) {
            Ok(count) if count == line.len() => self.state = State::Established,
            _ => self.kill(),
        }
    }

    fn on_data(&mut self, payload: Payload<'_>, ports: &mut HostPorts) -> Result<(), Violation> {
        let len = payload.len();
        if self.guest_shutdown & SHUTDOWN_SEND != 0 {
            return Err(Violation);
        }
        self.credit.receive(len)?;
        if len == 0 {
            return Ok(());
        }
        match &self.peer {
            // Sent before the guest heard that nobody receives.
            Peer::Gone => self.credit.forward(len),
            Peer::Socket(_) if self.host_shutdown & SHUTDOWN_RECEIVE != 0 => {
                self.credit.forward(len);
            }
            Peer::Socket(stream) => {
                let sent = if self.backlog.is_empty() && !self.blocked {
                    payload.send(stream)
                } else {
                    Ok(0)
                };
                self.after_write(sent, payload);
            }
            Peer::Port(port) => {
                let Some(handler) = ports.get_mut(&self.key.host_port) else {
                    return Err(Violation);
                };
                let Ok(data) = payload.copy(0) else {
                    return Err(Violation);
                };
                let mut out = Outbox::default();
                handler.on_data(port.id, &data, &mut out);
                self.credit.forward(len);
                self.apply(out);
            }
        }
        Ok(())
    }

    /// Accounts for what the socket took of `payload` and keeps the rest.
    fn after_write(&mut self, sent: io::Result<usize>, payload: Payload<'_>) {
        let sent = match sent {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => {
                self.credit.forward(payload.len());
                return self.host_stopped_receiving();
            }
        };
        // Never more than the payload is long.
        self.credit.forward(sent as u32);
        if sent < payload.len() as usize {
            self.blocked = true;
            match payload.copy(sent) {
                Ok(rest) => self.backlog.extend(rest),
                Err(_) => self.kill(),
            }
        }
        debug_assert!(self.backlog.len() <= RECEIVE_BUFFER as usize);
    }

    /// Gives the socket what waits for it.
    pub(super) fn flush(&mut self) {
        let Peer::Socket(stream) = &self.peer else {
            return;
        };
        let mut stream = stream;
        while !self.backlog.is_empty() && !self.blocked {
            let (first, _) = self.backlog.as_slices();
            match stream.write(first) {
                Ok(count) => {
                    self.backlog.drain(..count);
                    self.credit.forward(count as u32);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.blocked = true,
                Err(_) => return self.host_stopped_receiving(),
            }
        }
        if self.backlog.is_empty() {
            // Stalled clients are rare: do not keep their buffers.
            self.backlog = VecDeque::new();
        }
    }

    pub(super) fn discard_backlog(&mut self) {
        self.credit.forward(self.backlog.len() as u32);
        self.backlog = VecDeque::new();
    }

    fn host_stopped_receiving(&mut self) {
        self.discard_backlog();
        self.announce_shutdown(SHUTDOWN_RECEIVE);
    }

    pub(super) fn announce_shutdown(&mut self, flags: u32) {
        if self.host_shutdown & flags != flags {
            self.host_shutdown |= flags;
            self.pending.add(Pending::SHUTDOWN);
        }
    }

    /// The socket is of no more use.
    pub(super) fn close_host_side(&mut self, flags: u32) {
        self.discard_backlog();
        self.announce_shutdown(flags);
        self.drop_peer();
        if self.state == State::Draining {
            self.end();
        }
    }

    fn on_shutdown(&mut self, flags: u32) {
        self.guest_shutdown |= flags;
        match &self.peer {
            Peer::Socket(stream) if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 => {
                // So that who writes on the other side hears of it. Fails only
                // if the other side has gone.
                let _ = stream.shutdown(Shutdown::Read);
            }
            Peer::Port(_) if self.guest_shutdown & SHUTDOWN_SEND != 0 => {
                // The port's connections have no half-closed state.
                self.drop_peer();
                self.announce_shutdown(SHUTDOWN_BOTH);
            }
            _ => {}
        }
    }
}

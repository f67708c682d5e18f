//! From the host's side to the guest: what is to be told, packet by packet.

use std::io;
use std::net::Shutdown;

use super::{Connection, Peer, Pending, State};
use crate::devices::virtio::vsock::credit::RECEIVE_BUFFER;
use crate::devices::virtio::vsock::header::{
    Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND,
};
use crate::devices::virtio::vsock::payload::Room;

impl Connection {
    fn has_data(&self) -> bool {
        self.state == State::Established
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
            && self.host_shutdown & SHUTDOWN_SEND == 0
            && match &self.peer {
                Peer::Socket(_) => self.readable,
                Peer::Port(port) => !port.outbound.is_empty(),
                Peer::Gone => false,
            }
    }

    /// Brings what is to be told to the guest up to date with what has
    /// happened; to be called after everything else. Returns whether there is
    /// something for the guest.
    pub(in super::super) fn settle(&mut self) -> bool {
        match self.state {
            State::Established => self.settle_established(),
            State::Draining if self.backlog.is_empty() => self.end(),
            _ => {}
        }
        self.pending != Pending::default() || (self.has_data() && self.credit.available() > 0)
    }

    fn settle_established(&mut self) {
        if let Peer::Port(port) = &self.peer
            && port.closing
            && port.outbound.is_empty()
        {
            // It asked for the end, so it need not hear of it.
            self.peer = Peer::Gone;
            self.announce_shutdown(SHUTDOWN_BOTH);
        }
        let nothing_to_read =
            self.host_shutdown & SHUTDOWN_SEND != 0 || self.guest_shutdown & SHUTDOWN_RECEIVE != 0;
        if self.hung_up && nothing_to_read && self.socket().is_some() {
            self.close_host_side(SHUTDOWN_BOTH);
        }
        let guest_is_done = self.guest_shutdown & SHUTDOWN_SEND != 0 && self.backlog.is_empty();
        if guest_is_done && !self.finished_writing {
            self.finished_writing = true;
            if let Peer::Socket(stream) = &self.peer {
                // Fails only if the other side has gone.
                let _ = stream.shutdown(Shutdown::Write);
            }
        }
        if guest_is_done && self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            // The reset confirms a shutdown in both directions (5.10.6.5).
            return self.kill();
        }
        if self.credit.is_update_due() {
            self.pending.add(Pending::CREDIT_UPDATE);
        }
        if self.has_data() && self.credit.available() == 0 && !self.credit_requested {
            self.credit_requested = true;
            self.pending.add(Pending::CREDIT_REQUEST);
        }
    }

    /// The next packet for the guest, its data put into `room`; `None` if
    /// there is nothing after all. Source and destination are left to the
    /// caller.
    pub(in super::super) fn next_packet(&mut self, room: Room<'_>) -> Option<Header> {
        let mut header = Header::default();
        let op = if self.pending.take(Pending::RESET) {
            Op::Reset
        } else if self.pending.take(Pending::REQUEST) {
            Op::Request
        } else if self.pending.take(Pending::RESPONSE) {
            Op::Response
        } else if self.pending.take(Pending::CREDIT_REQUEST) {
            Op::CreditRequest
        } else if let Some(len) = self.take_data(room) {
            header.len = len;
            Op::Data
        } else if self.pending.take(Pending::SHUTDOWN) {
            header.flags = self.host_shutdown;
            Op::Shutdown
        } else if self.pending.take(Pending::CREDIT_UPDATE) {
            Op::CreditUpdate
        } else {
            return None;
        };
        // Every packet tells as much as a credit update would.
        self.pending.take(Pending::CREDIT_UPDATE);
        header.op = op.code();
        header.buf_alloc = RECEIVE_BUFFER;
        header.fwd_cnt = self.credit.advertise();
        Some(header)
    }

    fn take_data(&mut self, room: Room<'_>) -> Option<u32> {
        let max = self.credit.available().min(room.len());
        if max == 0 || !self.has_data() {
            return None;
        }
        let taken = match &mut self.peer {
            Peer::Socket(stream) => room.receive(stream, max),
            Peer::Port(port) => {
                let (first, _) = port.outbound.as_slices();
                let len = first.len().min(max as usize);
                room.put(&first[..len]).map(|()| {
                    port.outbound.drain(..len);
                    len as u32
                })
            }
            Peer::Gone => return None,
        };
        match taken {
            Ok(0) => {
                self.readable = false;
                if self.hung_up {
                    self.close_host_side(SHUTDOWN_BOTH);
                } else {
                    self.announce_shutdown(SHUTDOWN_SEND);
                }
                None
            }
            Ok(len) => {
                self.credit.send(len);
                Some(len)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                None
            }
            Err(_) => {
                self.close_host_side(SHUTDOWN_BOTH);
                None
            }
        }
    }
}

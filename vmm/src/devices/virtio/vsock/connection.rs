//! One connection between a port of the guest and something on the host.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::PORT_BACKLOG_MAX;
use super::credit::{Credit, RECEIVE_BUFFER, Violation};
use super::greeting::{self, Greeting};
use super::header::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::host_port::{HostConnection, HostPorts, Outbox};
use super::payload::{Payload, Room};

/// Identifies a connection towards the guest, whose CID is always the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A client of ours is there and has to say which port it wants.
    Greeting,
    /// The guest has been asked, or will be.
    Requested,
    /// Both sides are there.
    Established,
    /// The guest is done; the host's side has not taken all of its data yet.
    Draining,
    /// Over. A reset may still have to be sent.
    Dead,
}

/// What is on the host's side.
#[derive(Debug)]
enum Peer {
    Socket(UnixStream),
    Port(PortPeer),
    Gone,
}

#[derive(Debug)]
struct PortPeer {
    id: HostConnection,
    outbound: VecDeque<u8>,
    closing: bool,
}

/// Packets that wait for room in the guest's receive queue. Each kind at most
/// once, so that no guest can make the list grow.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Pending(u8);

impl Pending {
    const RESET: u8 = 1;
    const REQUEST: u8 = 2;
    const RESPONSE: u8 = 4;
    const SHUTDOWN: u8 = 8;
    const CREDIT_UPDATE: u8 = 16;
    const CREDIT_REQUEST: u8 = 32;

    fn add(&mut self, kind: u8) {
        self.0 |= kind;
    }

    fn has(self, kind: u8) -> bool {
        self.0 & kind != 0
    }

    fn take(&mut self, kind: u8) -> bool {
        let had = self.has(kind);
        self.0 &= !kind;
        had
    }
}

/// A connection, in any state.
#[derive(Debug)]
pub(super) struct Connection {
    /// Unset until the client has said which port it wants.
    pub(super) key: Key,
    /// It is in the list of those that have something for the guest.
    pub(super) queued: bool,
    state: State,
    peer: Peer,
    credit: Credit,
    pending: Pending,
    /// What the host's side has not taken yet; at most [`RECEIVE_BUFFER`].
    backlog: VecDeque<u8>,
    /// The socket may have something to read; edge-triggered.
    readable: bool,
    /// Both directions of the socket have ended.
    hung_up: bool,
    /// The last write to the socket was cut short.
    blocked: bool,
    /// The socket is watched for room to write.
    pub(super) watches_writing: bool,
    /// The guest asked for it, not a client.
    pub(super) from_guest: bool,
    /// The socket has been told that no more will come.
    finished_writing: bool,
    /// Whether the guest has been asked for room since it last had any.
    credit_requested: bool,
    /// Directions that the guest has closed, as `SHUTDOWN` flags.
    guest_shutdown: u32,
    /// Directions that the host's side has closed, as `SHUTDOWN` flags.
    host_shutdown: u32,
    /// The in-process port whose `on_close` is due.
    closed: Option<HostConnection>,
}

impl Connection {
    fn new(key: Key, state: State, peer: Peer) -> Self {
        Self {
            key,
            queued: false,
            state,
            peer,
            credit: Credit::default(),
            pending: Pending::default(),
            backlog: VecDeque::new(),
            readable: false,
            hung_up: false,
            blocked: false,
            watches_writing: false,
            from_guest: false,
            finished_writing: false,
            credit_requested: false,
            guest_shutdown: 0,
            host_shutdown: 0,
            closed: None,
        }
    }

    /// A client that has connected to the device's socket.
    pub(super) fn from_client(stream: UnixStream) -> Self {
        let key = Key {
            host_port: 0,
            guest_port: 0,
        };
        Self::new(key, State::Greeting, Peer::Socket(stream))
    }

    /// The guest's `request`, for which `stream` has been connected.
    pub(super) fn to_socket(key: Key, request: &Header, stream: UnixStream) -> Self {
        Self::accepted(key, request, Peer::Socket(stream))
    }

    /// The guest's `request`, which a port in this process serves.
    pub(super) fn to_port(key: Key, request: &Header, id: HostConnection) -> Self {
        let peer = PortPeer {
            id,
            outbound: VecDeque::new(),
            closing: false,
        };
        Self::accepted(key, request, Peer::Port(peer))
    }

    fn accepted(key: Key, request: &Header, peer: Peer) -> Self {
        let mut connection = Self::new(key, State::Established, peer);
        connection.from_guest = true;
        connection.pending.add(Pending::RESPONSE);
        // Nothing has been sent yet that the guest could have forwarded; what
        // it says of that is checked with the next packet.
        let _ = connection.credit.update_peer(request.buf_alloc, 0);
        connection
    }

    /// The socket, to be watched.
    pub(super) fn socket(&self) -> Option<&UnixStream> {
        match &self.peer {
            Peer::Socket(stream) => Some(stream),
            _ => None,
        }
    }

    /// The in-process port's name for this connection.
    pub(super) fn port_connection(&self) -> Option<HostConnection> {
        match &self.peer {
            Peer::Port(port) => Some(port.id),
            _ => None,
        }
    }

    /// Nothing is left to do: forget it.
    pub(super) fn is_finished(&self) -> bool {
        self.state == State::Dead && !self.pending.has(Pending::RESET)
    }

    /// The guest does not know of it (any more), so its key is free.
    pub(super) fn is_hidden(&self) -> bool {
        matches!(self.state, State::Greeting | State::Draining) || self.is_finished()
    }

    /// The host's side has gone, only the guest has not said goodbye yet.
    pub(super) fn is_lingering(&self) -> bool {
        self.state == State::Established && matches!(self.peer, Peer::Gone)
    }

    /// The port connection whose end its port has not heard of.
    pub(super) fn take_closed(&mut self) -> Option<HostConnection> {
        self.closed.take()
    }

    /// Whether the socket should be watched for room to write.
    pub(super) fn wants_to_write(&self) -> bool {
        self.blocked && !self.backlog.is_empty()
    }

    /// Over, and perhaps the guest has still to hear of it.
    pub(super) fn is_dead(&self) -> bool {
        self.state == State::Dead
    }

    /// Ends the connection; the guest gets a reset if it knows of it.
    pub(super) fn kill(&mut self) {
        if self.is_dead() {
            return;
        }
        let known = matches!(self.state, State::Requested | State::Established);
        // A request that has not been sent needs no reset.
        let unsent = self.pending.has(Pending::REQUEST);
        self.end();
        if known && !unsent {
            self.pending.add(Pending::RESET);
        }
    }

    fn end(&mut self) {
        self.state = State::Dead;
        self.pending = Pending::default();
        self.backlog = VecDeque::new();
        self.drop_peer();
    }

    fn drop_peer(&mut self) {
        if let Peer::Port(port) = std::mem::replace(&mut self.peer, Peer::Gone) {
            self.closed = Some(port.id);
        }
    }

    /// Something happened at the socket.
    pub(super) fn on_socket_event(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.readable |= readable || hung_up;
        self.hung_up |= hung_up;
        if writable {
            self.blocked = false;
        }
        match self.state {
            State::Requested if hung_up => self.kill(),
            // Nobody is there to read it.
            State::Established | State::Draining if hung_up => self.discard_backlog(),
            State::Established | State::Draining => self.flush(),
            _ => {}
        }
    }

    /// Reads the client's first line, of which `ended` says that no more will
    /// come. `Some` is the port that it wants, once.
    pub(super) fn greet(&mut self, ended: bool) -> Option<u32> {
        let (State::Greeting, Peer::Socket(stream)) = (self.state, &self.peer) else {
            return None;
        };
        match greeting::read(stream) {
            Greeting::Connect(port) => Some(port),
            Greeting::Incomplete if !ended => None,
            Greeting::Incomplete | Greeting::Invalid => {
                self.kill();
                None
            }
        }
    }

    /// Asks the guest, in the name of the client that was greeted.
    pub(super) fn request(&mut self, key: Key) {
        self.key = key;
        self.state = State::Requested;
        self.pending.add(Pending::REQUEST);
    }

    /// Takes a packet of the guest's for this connection; its addresses and
    /// type have been checked.
    pub(super) fn on_packet(
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
    fn flush(&mut self) {
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

    fn discard_backlog(&mut self) {
        self.credit.forward(self.backlog.len() as u32);
        self.backlog = VecDeque::new();
    }

    fn host_stopped_receiving(&mut self) {
        self.discard_backlog();
        self.announce_shutdown(SHUTDOWN_RECEIVE);
    }

    fn announce_shutdown(&mut self, flags: u32) {
        if self.host_shutdown & flags != flags {
            self.host_shutdown |= flags;
            self.pending.add(Pending::SHUTDOWN);
        }
    }

    /// The socket is of no more use.
    fn close_host_side(&mut self, flags: u32) {
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

    /// Does what a port answered.
    pub(super) fn apply(&mut self, out: Outbox) {
        let Peer::Port(port) = &mut self.peer else {
            return;
        };
        if port.closing {
            return;
        }
        if port.outbound.len() + out.bytes.len() > PORT_BACKLOG_MAX {
            return self.kill();
        }
        port.outbound.extend(out.bytes);
        port.closing = out.close;
    }

    /// How many more bytes a port may send at this moment.
    pub(super) fn port_room(&self) -> usize {
        match &self.peer {
            Peer::Port(port) if !port.closing => PORT_BACKLOG_MAX - port.outbound.len(),
            _ => 0,
        }
    }

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
    pub(super) fn settle(&mut self) -> bool {
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
    pub(super) fn next_packet(&mut self, room: Room<'_>) -> Option<Header> {
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

//! One connection between a port of the guest and something on the host.

mod incoming;
mod outgoing;

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;

use super::PORT_BACKLOG_MAX;
use super::credit::Credit;
use super::greeting::{self, Greeting};
use super::header::Header;
use super::host_port::{HostConnection, Outbox};

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
}

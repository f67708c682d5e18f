//! All connections of a guest, and who of them has something for it.
//!
//! Sockets are watched by an epoll instance of the muxer's own, which the
//! event loop watches as one file: connections come and go without the loop's
//! knowledge, also from a vCPU thread that resets the device, and cost one
//! system call each. They are watched edge-triggered, so that one whose data
//! the guest has no room for costs nothing until it has.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit, setrlimit};

use super::connection::{Connection, Key};
use super::header::{Header, Op, TYPE_STREAM};
use super::host_port::{HostConnection, HostPorts, Outbox};
use super::listener::Listener;
use super::payload::{Payload, Room};
use super::slots::{Slots, Token};
use super::{HOST_CID, VsockError};
use crate::devices::virtio::chain::Segments;

/// The most connections that the guest may have asked for, and the most that
/// clients of the host may have.
pub const CONNECTIONS_MAX: usize = 1024;

/// Resets that wait for room in the guest's receive queue and belong to no
/// connection. When there are so many, the guest's packets have to wait.
const RESETS_MAX: usize = 64;

/// First port for connections from the host: beyond all well-known ones.
const FIRST_CLIENT_PORT: u32 = 1 << 30;

/// Events to take from the kernel at once.
const EVENT_BATCH: usize = 64;

/// Rounds of events before the event loop gets its turn.
const EVENT_ROUNDS: usize = 4;

const LISTENER: u64 = u64::MAX;

/// See the module.
pub(super) struct Muxer {
    guest_cid: u64,
    listener: Listener,
    /// Whether the listener is watched.
    accepting: bool,
    epoll: OwnedFd,
    slots: Slots<Connection>,
    keys: BTreeMap<Key, Token>,
    /// Those that have something for the guest, in the order of their turns.
    ready: VecDeque<Token>,
    resets: VecDeque<Header>,
    ports: HostPorts,
    next_client_port: u32,
    from_guest: usize,
    from_clients: usize,
}

impl Muxer {
    /// One whose socket, at `path`, is not there yet.
    pub(super) fn new(guest_cid: u64, path: &Path, ports: HostPorts) -> Result<Self, VsockError> {
        let listener = Listener::new(path)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(setup_error)?;
        Ok(Self {
            guest_cid,
            listener,
            accepting: false,
            epoll,
            slots: Slots::default(),
            keys: BTreeMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            ports,
            next_client_port: FIRST_CLIENT_PORT,
            from_guest: 0,
            from_clients: 0,
        })
    }

    /// Makes its socket. Clients are accepted from now on.
    pub(super) fn listen(&mut self) -> Result<(), VsockError> {
        self.listener.listen()?;
        self.watch_listener().map_err(setup_error)
    }

    /// Readable when [`Self::on_host_events`] has something to do.
    pub(super) fn event_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Whether another packet of the guest's can be taken.
    pub(super) fn can_take_packet(&self) -> bool {
        self.resets.len() < RESETS_MAX
    }

    /// Whether there may be a packet for the guest.
    pub(super) fn has_packet(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Takes a packet of the guest's, with its data in `message`.
    pub(super) fn on_guest_packet(
        &mut self,
        header: &Header,
        message: &Segments,
        memory: &crate::memory::GuestMemory,
    ) {
        if header.src_cid != self.guest_cid {
            return;
        }
        let op = Op::from_code(header.op);
        let Some(op) = op.filter(|_| header.kind == TYPE_STREAM && header.dst_cid == HOST_CID)
        else {
            return self.refuse(header);
        };
        let key = Key {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        let Some(&token) = self.keys.get(&key) else {
            return match op {
                Op::Request => self.connect(key, header),
                _ => self.refuse(header),
            };
        };
        let Some(connection) = self.slots.get_mut(token) else {
            return;
        };
        let payload = Payload::new(message, memory, if op == Op::Data { header.len } else { 0 });
        match payload {
            Ok(payload) if op != Op::Request => {
                connection.on_packet(op, header, payload, &mut self.ports);
            }
            _ => connection.kill(),
        }
        self.settle(token);
    }

    /// The next packet for the guest, its data put into `room`.
    pub(super) fn next_packet(&mut self, room: Room<'_>) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(token) = self.ready.pop_front() {
            let Some(connection) = self.slots.get_mut(token) else {
                continue;
            };
            connection.queued = false;
            let key = connection.key;
            let packet = connection.next_packet(room);
            // At the end of the list if there is more: everyone has a turn.
            self.settle(token);
            if let Some(header) = packet {
                return Some(Header {
                    src_cid: HOST_CID,
                    dst_cid: self.guest_cid,
                    src_port: key.host_port,
                    dst_port: key.guest_port,
                    kind: TYPE_STREAM,
                    ..header
                });
            }
        }
        None
    }

    /// Looks after everything that happened to clients and sockets.
    pub(super) fn on_host_events(&mut self) {
        let mut events = Vec::with_capacity(EVENT_BATCH);
        for _ in 0..EVENT_ROUNDS {
            events.clear();
            let timeout = rustix::event::Timespec::default();
            let spare = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, spare, Some(&timeout)) {
                Ok(count) if count > 0 => {}
                _ => return,
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    data => self.on_socket_event(Token::from_bits(data), event.flags),
                }
            }
        }
    }

    /// Ends all connections, without a word to the guest.
    pub(super) fn reset(&mut self) {
        for connection in self.slots.drain() {
            if let Some(id) = connection.port_connection()
                && let Some(port) = self.ports.get_mut(&connection.key.host_port)
            {
                port.on_close(id);
            }
        }
        self.keys.clear();
        self.ready.clear();
        self.resets.clear();
        (self.from_guest, self.from_clients) = (0, 0);
        self.resume_accepting();
    }

    /// Sends `bytes` on a connection to a port in this process. `false` if
    /// there is no such connection any more, or no room.
    pub(super) fn send(&mut self, id: HostConnection, bytes: &[u8]) -> bool {
        let token = Token::from_bits(id.0);
        let Some(connection) = self.slots.get_mut(token) else {
            return false;
        };
        if connection.port_connection() != Some(id) || connection.port_room() < bytes.len() {
            return false;
        }
        connection.apply(Outbox {
            bytes: bytes.to_vec(),
            close: false,
        });
        self.settle(token);
        true
    }

    /// Answers a packet that belongs to no connection.
    fn refuse(&mut self, header: &Header) {
        // Never a reset for a reset: two sides could go on for ever.
        if header.op != Op::Reset.code() {
            self.resets.push_back(Header {
                src_cid: header.dst_cid,
                dst_cid: header.src_cid,
                src_port: header.dst_port,
                dst_port: header.src_port,
                kind: header.kind,
                op: Op::Reset.code(),
                ..Header::default()
            });
        }
    }

    /// The guest asks for a connection.
    fn connect(&mut self, key: Key, request: &Header) {
        if self.from_guest >= CONNECTIONS_MAX {
            self.evict();
        }
        if self.from_guest >= CONNECTIONS_MAX {
            return self.refuse(request);
        }
        if self.ports.contains_key(&key.host_port) {
            let make =
                |token: Token| Connection::to_port(key, request, HostConnection(token.to_bits()));
            let token = self.slots.insert_with(make);
            self.from_guest += 1;
            self.keys.insert(key, token);
            let (port, connection) = (
                self.ports.get_mut(&key.host_port),
                self.slots.get_mut(token),
            );
            if let (Some(port), Some(connection)) = (port, connection) {
                let mut out = Outbox::default();
                port.on_connect(HostConnection(token.to_bits()), &mut out);
                connection.apply(out);
            }
            return self.settle(token);
        }
        let Ok(stream) = self.listener.connect(key.host_port) else {
            return self.refuse(request);
        };
        let token = self
            .slots
            .insert_with(|_| Connection::to_socket(key, request, stream));
        self.from_guest += 1;
        self.keys.insert(key, token);
        self.watch(token);
        self.settle(token);
    }

    /// Makes room, at the latest when the guest has taken the resets: ends
    /// connections whose host side has gone, and that wait for a guest that
    /// does not say goodbye.
    fn evict(&mut self) {
        for token in self.slots.tokens() {
            if let Some(connection) = self.slots.get_mut(token)
                && connection.from_guest
                && connection.is_lingering()
            {
                connection.kill();
                self.settle(token);
            }
        }
    }

    fn accept(&mut self) {
        loop {
            if self.from_clients >= CONNECTIONS_MAX {
                return self.pause_accepting();
            }
            match self.listener.accept() {
                Ok(stream) => {
                    let token = self.slots.insert_with(|_| Connection::from_client(stream));
                    self.from_clients += 1;
                    self.watch(token);
                    self.settle(token);
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::MFILE) if raise_file_limit() => {}
                // Not now; and the listener would not stop reporting it.
                Err(_) => return self.pause_accepting(),
            }
        }
    }

    fn pause_accepting(&mut self) {
        if std::mem::take(&mut self.accepting) {
            // Fails only if it is not watched.
            let socket = self.listener.socket();
            let _ = socket.map(|socket| epoll::delete(&self.epoll, socket));
        }
    }

    fn resume_accepting(&mut self) {
        if !self.accepting && self.from_clients < CONNECTIONS_MAX {
            // It is tried again after the next connection.
            let _ = self.watch_listener();
        }
    }

    fn watch_listener(&mut self) -> rustix::io::Result<()> {
        if let Some(socket) = self.listener.socket() {
            let data = EventData::new_u64(LISTENER);
            epoll::add(&self.epoll, socket, data, EventFlags::IN)?;
            self.accepting = true;
        }
        Ok(())
    }

    fn on_socket_event(&mut self, token: Token, flags: EventFlags) {
        let Some(connection) = self.slots.get_mut(token) else {
            return;
        };
        let hung_up = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        let ended = hung_up || flags.contains(EventFlags::RDHUP);
        let readable = ended || flags.contains(EventFlags::IN);
        connection.on_socket_event(readable, flags.contains(EventFlags::OUT), hung_up);
        if let Some(guest_port) = connection.greet(ended) {
            self.request(token, guest_port);
        }
        self.settle(token);
    }

    /// A client has said which of the guest's ports it wants.
    fn request(&mut self, token: Token, guest_port: u32) {
        // There are far more ports than connections.
        let key = loop {
            let key = Key {
                host_port: self.next_client_port,
                guest_port,
            };
            self.next_client_port = match self.next_client_port.checked_add(1) {
                // The last one is "any port".
                Some(next) if next < u32::MAX => next,
                _ => FIRST_CLIENT_PORT,
            };
            if !self.keys.contains_key(&key) {
                break key;
            }
        };
        if let Some(connection) = self.slots.get_mut(token) {
            connection.request(key);
            self.keys.insert(key, token);
        }
    }

    fn watch(&mut self, token: Token) {
        let Some(connection) = self.slots.get_mut(token) else {
            return;
        };
        let watched = connection.socket().map(|stream| {
            epoll::add(
                &self.epoll,
                stream,
                EventData::new_u64(token.to_bits()),
                interest(false),
            )
        });
        if !matches!(watched, Some(Ok(()))) {
            connection.kill();
        }
    }

    /// To be called after anything was done to a connection: puts it into the
    /// list of those with something for the guest, or forgets it.
    fn settle(&mut self, token: Token) {
        let Some(connection) = self.slots.get_mut(token) else {
            return;
        };
        let has_packet = connection.settle();
        let key = connection.key;
        if let Some(id) = connection.take_closed()
            && let Some(port) = self.ports.get_mut(&key.host_port)
        {
            port.on_close(id);
        }
        if connection.is_hidden() && self.keys.get(&key) == Some(&token) {
            self.keys.remove(&key);
        }
        if connection.is_finished() {
            let (from_guest, queued) = (connection.from_guest, connection.queued);
            // Closes the socket, and so ends its being watched.
            self.slots.remove(token);
            if queued {
                // A guest that takes nothing must not make the list grow.
                self.ready.retain(|&other| other != token);
            }
            if from_guest {
                self.from_guest -= 1;
            } else {
                self.from_clients -= 1;
            }
            return self.resume_accepting();
        }
        if has_packet && !connection.queued {
            connection.queued = true;
            self.ready.push_back(token);
        }
        let wants_to_write = connection.wants_to_write();
        if connection.watches_writing != wants_to_write {
            connection.watches_writing = wants_to_write;
            let watched = connection.socket().map(|stream| {
                let data = EventData::new_u64(token.to_bits());
                epoll::modify(&self.epoll, stream, data, interest(wants_to_write))
            });
            if let Some(Err(_)) = watched {
                connection.kill();
                self.settle(token);
            }
        }
    }
}

#[cfg(test)]
impl Muxer {
    pub(super) fn connections(&self) -> usize {
        self.slots.tokens().len()
    }

    /// What must hold between any two events.
    pub(super) fn check(&mut self) {
        assert_eq!(self.from_guest + self.from_clients, self.connections());
        assert!(self.resets.len() <= RESETS_MAX);
        assert!(self.ready.len() <= self.connections());
        for (&key, &token) in &self.keys {
            let connection = self.slots.get_mut(token).unwrap();
            assert_eq!(connection.key, key);
            assert!(!connection.is_hidden());
        }
        for token in self.slots.tokens() {
            let connection = self.slots.get_mut(token).unwrap();
            assert!(!connection.is_finished());
            assert_eq!(connection.settle(), connection.queued);
        }
    }
}

impl std::fmt::Debug for Muxer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Muxer")
            .field("guest_cid", &self.guest_cid)
            .field("listener", &self.listener)
            .field("connections", &self.keys)
            .finish_non_exhaustive()
    }
}

fn interest(writing: bool) -> EventFlags {
    let reading = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
    if writing {
        reading | EventFlags::OUT
    } else {
        reading
    }
}

fn setup_error(error: Errno) -> VsockError {
    VsockError::Event(io::Error::from(error))
}

/// Uses the hard limit of open files, if it is not in use already. The soft one
/// is often 1024, less than the connections that may be.
fn raise_file_limit() -> bool {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return false;
    }
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).is_ok()
}

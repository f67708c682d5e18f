//! Callers: from the moment that one is accepted to its hanging up.

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::connection::{Arrival, Connection, Stage};
use super::poller::Token;
use super::timers::{Due, MS, now};
use super::{Agent, control, log, process};
use crate::protocol::CHUNK;

/// Connections at once; more callers wait in the listener's queue.
const MAX_CONNECTIONS: usize = 1024;
/// How long a caller may take to say hello, and to hang up when all is said.
const PATIENCE: u64 = 10_000 * MS;

impl Agent {
    /// Watches the listeners while there is room for callers.
    pub(super) fn listen(&mut self) {
        let open = self.connections.len() < MAX_CONNECTIONS && self.ending.is_none();
        let wanted = if open {
            EventFlags::IN
        } else {
            EventFlags::empty()
        };
        for ((listener, registered), index) in self.listeners.iter_mut().zip(0..) {
            let token = Token::Listener(index);
            if let Err(e) = self.poller.set(&listener.fd, token, registered, wanted) {
                log(&format!("cannot watch a listener: {e}"));
            }
        }
    }

    pub(super) fn accept(&mut self, index: u32) {
        let Some((listener, _)) = self.listeners.get(index as usize) else {
            return;
        };
        match listener.accept() {
            Ok(Some((socket, secret))) => {
                let id = self.next_connection;
                self.next_connection = id.wrapping_add(1).max(1);
                let mut connection = Connection::new(id, socket, secret);
                self.limit(&mut connection);
                self.settle(connection);
            }
            Ok(None) => {}
            Err(e) => log(&format!("cannot accept a connection: {e}")),
        }
        self.listen();
    }

    pub(super) fn on_socket(&mut self, id: u32, flags: EventFlags) {
        let Some(mut connection) = self.connections.remove(&id) else {
            return;
        };
        let readable = EventFlags::IN | EventFlags::HUP | EventFlags::ERR;
        if flags.intersects(readable) {
            self.scratch.resize(CHUNK, 0);
            let arrival = connection.receive(&mut self.scratch);
            if arrival == Arrival::Gone || !self.take_frames(&mut connection) {
                self.drop_connection(connection);
                return;
            }
        }
        self.settle(connection);
        self.apply_effects();
        self.carry_out();
    }

    /// Handles all whole frames; false when the connection is to be dropped.
    fn take_frames(&mut self, connection: &mut Connection) -> bool {
        loop {
            match connection.decoder.next_frame() {
                Ok(None) => return true,
                Ok(Some(frame)) => {
                    if !self.take_frame(connection, frame) {
                        return false;
                    }
                }
                Err((id, error)) => {
                    if !control::refuse_frame(connection, id, &error) {
                        return false;
                    }
                }
            }
        }
    }

    pub(super) fn on_stream(&mut self, id: u32, which: u8) {
        let Some(mut connection) = self.connections.remove(&id) else {
            return;
        };
        if let Stage::Process(process) = &mut connection.stage {
            let (session, outbox) = (connection.session, &mut connection.outbox);
            if which == process::STDIN {
                process.pour(session, outbox);
            } else {
                self.scratch.resize(CHUNK, 0);
                process.drain(which, session, &mut self.scratch, outbox);
            }
        }
        self.settle(connection);
    }

    /// Gives a connection only so much time to say hello, or to hang up.
    pub(super) fn limit(&mut self, connection: &mut Connection) {
        self.unlimit(connection);
        let deadline = now() + PATIENCE;
        self.timers.set(deadline, Due::Closing(connection.id));
        connection.deadline = Some(deadline);
    }

    /// Nothing wakes the agent, or a copy of it, for what is over.
    fn unlimit(&mut self, connection: &mut Connection) {
        if let Some(deadline) = connection.deadline.take() {
            self.timers.clear(deadline, Due::Closing(connection.id));
        }
    }

    /// Lets a caller go that has taken too long. It may have been the agent that did,
    /// with what others wanted: what has arrived meanwhile counts.
    pub(super) fn close_late(&mut self, id: u32) {
        if self.is_late(id) {
            self.on_socket(id, EventFlags::IN);
        }
        if self.is_late(id)
            && let Some(connection) = self.connections.remove(&id)
        {
            self.drop_connection(connection);
        }
    }

    fn is_late(&self, id: u32) -> bool {
        self.connections
            .get(&id)
            .is_some_and(|connection| connection.stage.is_passing())
    }

    /// Brings a connection up to date after anything happened to it, and puts
    /// it (back) into the table, or lets it go.
    pub(super) fn settle(&mut self, mut connection: Connection) {
        self.advance(&mut connection);
        if !connection.stage.is_passing() {
            self.unlimit(&mut connection);
        }
        if connection.outbox.len() > 0 {
            match connection.outbox.flush(&connection.socket) {
                // A peer that has hung up may still have sent something
                // before; without one nothing is lost.
                Err(Errno::PIPE | Errno::CONNRESET) | Ok(()) => {}
                Err(e) => {
                    log(&format!("connection {} failed: {e}", connection.id));
                    self.drop_connection(connection);
                    return;
                }
            }
            // There is room again: what waits behind comes by itself, since
            // its descriptors are watched from now on.
        }
        if let Err(e) = self.watch(&mut connection) {
            log(&format!("cannot watch connection {}: {e}", connection.id));
            self.drop_connection(connection);
            return;
        }
        self.connections.insert(connection.id, connection);
    }

    /// Watches what a connection waits for.
    pub(super) fn watch(&self, connection: &mut Connection) -> Result<(), Errno> {
        let id = connection.id;
        let mut wanted = connection.wanted();
        let more = match &connection.stage {
            Stage::Reading(_) => true,
            Stage::Console(name, position) => self.console_has(name, *position),
            Stage::Events(next) => self.events.at(*next).is_some(),
            _ => false,
        };
        if more {
            // The file, the console or the log is always ready; the socket says when.
            wanted |= EventFlags::OUT;
        }
        if let Stage::Process(process) = &mut connection.stage {
            for which in [process::STDIN, process::STDOUT, process::STDERR] {
                let wanted = process.wanted(which, &connection.outbox);
                if let Some(stream) = &mut process.streams[usize::from(which)] {
                    let token = Token::Stream(id, which);
                    self.poller
                        .set(&stream.fd, token, &mut stream.registered, wanted)?;
                }
            }
        }
        let token = Token::Socket(id);
        self.poller.set(
            &connection.socket,
            token,
            &mut connection.registered,
            wanted,
        )
    }

    /// Lets a connection go, and what lives for it.
    pub(super) fn drop_connection(&mut self, mut connection: Connection) {
        self.unlimit(&mut connection);
        if let Stage::Process(process) = &connection.stage {
            process.hang_up();
            if let (Some(name), Ok(supervisor)) = (&process.init_of, &mut self.supervisor) {
                supervisor.abandon(name);
            }
        }
        drop(connection);
        self.listen();
        self.apply_effects();
    }
}

//! One client's connection.

use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::files::{Reading, Writing};
use super::listener::Secret;
use super::outbox::Outbox;
use super::process::Process;
use crate::protocol::{Code, Decoder, Failure, Message, Name};

/// A connection and what it is used for.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: u32,
    pub(crate) socket: OwnedFd,
    pub(crate) decoder: Decoder,
    pub(crate) outbox: Outbox,
    pub(crate) stage: Stage,
    /// What the socket is registered for.
    pub(crate) registered: EventFlags,
    /// When it is closed if it has not come further by then.
    pub(crate) deadline: Option<u64>,
    /// Request identifier of the session that the connection has become.
    pub(crate) session: u32,
}

/// How far a connection has come.
#[derive(Debug)]
pub(crate) enum Stage {
    /// Its hello has not come.
    Greeting(Secret),
    /// It makes requests.
    Control,
    /// It is a process's.
    Process(Box<Process>),
    /// It shows a VPS's console from a position on.
    Console(Name, u64),
    /// It writes a file.
    Writing(Box<Writing>),
    /// It reads a file.
    Reading(Box<Reading>),
    /// It follows events from a number on.
    Events(u64),
    /// All is said: it is closed when the client has taken it and hung up.
    Finishing,
}

impl Stage {
    /// Whether it has yet to say hello, or only to hang up: no requests are taken, and
    /// there is a limit to how long that may last.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Greeting(_) | Self::Finishing)
    }
}

/// What came of reading a socket.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Bytes, now in the decoder, or nothing yet.
    Bytes,
    /// The client is gone.
    Gone,
}

impl Connection {
    pub(crate) fn new(id: u32, socket: OwnedFd, secret: Secret) -> Self {
        Self {
            id,
            socket,
            decoder: Decoder::new(),
            outbox: Outbox::default(),
            stage: Stage::Greeting(secret),
            registered: EventFlags::empty(),
            deadline: None,
            session: 0,
        }
    }

    /// Reads once what has arrived.
    pub(crate) fn receive(&mut self, scratch: &mut [u8]) -> Arrival {
        match recv(&self.socket, &mut *scratch, RecvFlags::DONTWAIT) {
            Ok((count, _)) if count > 0 => {
                if !matches!(self.stage, Stage::Finishing) {
                    self.decoder.push(&scratch[..count]);
                }
                Arrival::Bytes
            }
            Err(Errno::AGAIN | Errno::INTR) => Arrival::Bytes,
            _ => Arrival::Gone,
        }
    }

    /// Queues a message of the session.
    pub(crate) fn say(&mut self, message: Message) {
        self.outbox.push(self.session, message);
    }

    /// Ends the session with its last message.
    pub(crate) fn finish(&mut self, message: Message) {
        self.say(message);
        self.stage = Stage::Finishing;
    }

    /// What the socket has to be watched for.
    pub(crate) fn wanted(&self) -> EventFlags {
        let mut wanted = EventFlags::empty();
        // A client that does not take its answers is not asked for more
        // requests. A session's input is bounded by credits instead.
        if self.outbox.has_room() || !matches!(self.stage, Stage::Control) {
            wanted |= EventFlags::IN;
        }
        if self.outbox.len() > 0 {
            wanted |= EventFlags::OUT;
        }
        wanted
    }
}

/// A failure without an error number.
pub(crate) fn failure(code: Code, message: impl Into<String>) -> Failure {
    Failure {
        code,
        message: message.into(),
        errno: None,
    }
}

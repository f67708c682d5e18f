//! Sessions: a connection that is one process's, file's or event stream's.

use std::time::{Duration, Instant};

use super::error::ClientError;
use super::request::unexpected;
use super::wire::Wire;
use crate::protocol::{CHUNK, Event, Exit, Frame, Message, STDIN_WINDOW};

/// A session as the client sees it.
///
/// [`Session::attach`] gives it the caller's terminal or standard streams;
/// [`Session::capture`] feeds it bytes and collects its output;
/// [`Session::send`] and [`Session::next`] are for everything else.
#[derive(Debug)]
pub struct Session {
    pub(super) wire: Wire,
    id: u32,
    /// Bytes of standard input that may still be sent.
    window: usize,
}

/// What a captured session left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// How the process ended.
    pub exit: Exit,
    /// All of its standard output (or of its terminal).
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
}

impl Session {
    pub(super) fn new(wire: Wire, id: u32) -> Self {
        Self {
            wire,
            id,
            window: STDIN_WINDOW,
        }
    }

    /// Queues a message of the session; it goes out with the next
    /// [`Session::next`].
    pub fn send(&mut self, message: Message) {
        self.wire.queue(&Frame::new(self.id, message));
    }

    /// Bytes of standard input that the agent will take now.
    pub fn window(&self) -> usize {
        self.window
    }

    /// Queues as much of `bytes` as the agent will take, and returns how
    /// much that was. More can be sent after a [`Message::StdinCredit`].
    pub fn send_stdin(&mut self, bytes: &[u8]) -> usize {
        let mut sent = 0;
        while sent < bytes.len() && self.window > 0 {
            let count = (bytes.len() - sent).min(CHUNK).min(self.window);
            self.send(Message::Stdin(bytes[sent..sent + count].to_vec()));
            self.window -= count;
            sent += count;
        }
        sent
    }

    /// Sends what is queued and waits for the session's next message
    /// (for ever when `within` is `None`). Credits are accounted for and
    /// returned too.
    ///
    /// # Errors
    /// The session's [`Message::Error`] as [`ClientError::Agent`]; a lost or
    /// late connection.
    pub fn next(&mut self, within: Option<Duration>) -> Result<Message, ClientError> {
        let frame = self.wire.wait(within, "in a session")?;
        self.account(frame.message)
    }

    /// Books a message that arrived.
    pub(super) fn account(&mut self, message: Message) -> Result<Message, ClientError> {
        match message {
            Message::Error(failure) => Err(ClientError::Agent(failure)),
            Message::StdinCredit(credit) => {
                self.window = (self.window + credit.bytes as usize).min(STDIN_WINDOW);
                Ok(Message::StdinCredit(credit))
            }
            other => Ok(other),
        }
    }

    /// Waits until the process runs, and returns its PID as the agent sees it.
    ///
    /// # Errors
    /// It could not be started, or the connection failed.
    pub fn started(&mut self, within: Duration) -> Result<u32, ClientError> {
        loop {
            match self.next(Some(within))? {
                Message::Started(started) => return Ok(started.pid),
                Message::StdinCredit(_) => {}
                other => {
                    return Err(unexpected(
                        &self.wire,
                        &other,
                        "waiting for a process to start",
                    ));
                }
            }
        }
    }

    /// Feeds `input` to the process and collects all of its output.
    ///
    /// # Errors
    /// It could not be started, the connection failed, or `within` passed
    /// first; the agent then hangs the process up.
    pub fn capture(mut self, input: &[u8], within: Duration) -> Result<Captured, ClientError> {
        let deadline = Instant::now() + within;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut rest = input;
        let mut ended_input = false;
        loop {
            let sent = self.send_stdin(rest);
            rest = &rest[sent..];
            if rest.is_empty() && !ended_input {
                self.send(Message::StdinEof);
                ended_input = true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.next(Some(left))? {
                Message::Stdout(bytes) => stdout.extend_from_slice(&bytes),
                Message::Stderr(bytes) => stderr.extend_from_slice(&bytes),
                Message::Exited(exit) => {
                    return Ok(Captured {
                        exit,
                        stdout,
                        stderr,
                    });
                }
                Message::Started(_) | Message::StdinCredit(_) => {}
                other => return Err(unexpected(&self.wire, &other, "capturing output")),
            }
        }
    }
}

/// A stream of events.
#[derive(Debug)]
pub struct Events {
    session: Session,
}

impl Events {
    pub(super) fn new(session: Session) -> Self {
        Self { session }
    }

    /// Waits for the next event (for ever when `within` is `None`).
    ///
    /// # Errors
    /// The connection failed, or nothing happened in time.
    pub fn next(&mut self, within: Option<Duration>) -> Result<Event, ClientError> {
        match self.session.next(within)? {
            Message::Event(event) => Ok(event),
            other => Err(unexpected(&self.session.wire, &other, "following events")),
        }
    }
}

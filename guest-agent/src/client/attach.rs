//! A session on the caller's terminal or standard streams.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::error::ClientError;
use super::request::unexpected;
use super::session::Session;
use super::signals::Signals;
use super::terminal::{RawMode, terminal_size};
use super::wire::{wait_for, write_all};
use crate::protocol::{CHUNK, Exit, Message, Resize, Signal};

/// How a session is given the caller's streams.
#[derive(Debug)]
pub struct Attach<'a> {
    /// Where standard input comes from; `None` is an empty one.
    pub stdin: Option<BorrowedFd<'a>>,
    /// Where standard output, or the terminal's, goes.
    pub stdout: BorrowedFd<'a>,
    /// Where standard error goes.
    pub stderr: BorrowedFd<'a>,
    /// The session runs on a terminal and `stdin` is one: it is put in raw
    /// mode for the while, and its size is passed on.
    pub terminal: bool,
    /// A byte of `stdin` that ends the attachment and leaves the session's
    /// other end as it is (a console's `Ctrl-]` is 0x1d).
    pub detach: Option<u8>,
}

/// How an attachment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The process ended.
    Exited(Exit),
    /// The detach byte was typed.
    Detached,
    /// A signal told this program to end; the agent hangs the process up.
    Interrupted(u8),
    /// Nobody reads our output any more; the agent hangs the process up.
    OutputClosed,
}

impl Outcome {
    /// What a shell would report.
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Exited(exit) => exit.shell_code(),
            Self::Detached => 0,
            Self::Interrupted(signal) => 128u8.saturating_add(signal),
            Self::OutputClosed => 128 + libc::SIGPIPE as u8,
        }
    }
}

/// Signals that are passed on to the session.
const FORWARDED: [i32; 6] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// So many of one's `Ctrl-C` are passed on; the next one ends the attachment.
const PATIENCE: u32 = 3;

impl<'a> Attach<'a> {
    /// The process's own standard streams, without a terminal.
    pub fn streams(stdin: &'a io::Stdin, stdout: &'a io::Stdout, stderr: &'a io::Stderr) -> Self {
        Self {
            stdin: Some(stdin.as_fd()),
            stdout: stdout.as_fd(),
            stderr: stderr.as_fd(),
            terminal: false,
            detach: None,
        }
    }
}

impl Session {
    /// Connects the session with the caller's streams until it ends.
    ///
    /// On a terminal keys travel as they are and the window's size follows;
    /// `SIGTERM` or `SIGHUP` of this program ends the attachment. Without
    /// one, `SIGINT`, `SIGTERM`, `SIGHUP`, `SIGQUIT`, `SIGUSR1` and `SIGUSR2`
    /// are passed on to the process, and a fourth `SIGINT` or `SIGTERM` gives
    /// up on it.
    ///
    /// # Errors
    /// The process could not be started, or the connection or a local stream failed.
    pub fn attach(mut self, how: &Attach<'_>) -> Result<Outcome, ClientError> {
        let local = |doing: &'static str, path: &'static str| {
            move |e: Errno| ClientError::Local {
                doing,
                path: path.into(),
                source: e.into(),
            }
        };
        let mut routed = FORWARDED.to_vec();
        if how.terminal {
            routed.push(libc::SIGWINCH);
        }
        let signals = Signals::route(&routed).map_err(local("route signals to", "a pipe"))?;
        let _raw = match how.stdin.filter(|_| how.terminal) {
            Some(fd) => Some(RawMode::enter(fd).map_err(local("make raw", "the terminal"))?),
            None => None,
        };
        let mut pump = Pump {
            how,
            stdin: how.stdin,
            asked: 0,
            buffer: vec![0; CHUNK],
        };
        if pump.stdin.is_none() {
            self.send(Message::StdinEof);
        }
        loop {
            while let Some(frame) = self.wire.next("in a session")? {
                let message = self.account(frame.message)?;
                if let Some(outcome) = pump.output(&self, message)? {
                    return Ok(outcome);
                }
            }
            self.wire.flush("in a session")?;

            let interest = self.wire.interest();
            let wire = self.wire.as_fd();
            let mut fds = vec![
                PollFd::from_borrowed_fd(wire, interest),
                PollFd::new(&signals, PollFlags::IN),
            ];
            let wanted = pump.stdin.filter(|_| self.window() > 0);
            if let Some(fd) = wanted {
                fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
            }
            wait_for(&mut fds, None).map_err(|e| self.wire.failed(e, "in a session"))?;
            let stdin_ready = fds.get(2).is_some_and(|fd| !fd.revents().is_empty());
            drop(fds);

            while let Some(signal) = signals.take() {
                if let Some(outcome) = pump.signal(&mut self, signal) {
                    self.wire.flush("in a session")?;
                    return Ok(outcome);
                }
            }
            if stdin_ready
                && let Some(fd) = wanted
                && pump.input(&mut self, fd)?
            {
                return Ok(Outcome::Detached);
            }
        }
    }
}

struct Pump<'a> {
    how: &'a Attach<'a>,
    stdin: Option<BorrowedFd<'a>>,
    asked: u32,
    buffer: Vec<u8>,
}

impl Pump<'_> {
    fn output(&self, session: &Session, message: Message) -> Result<Option<Outcome>, ClientError> {
        let (fd, path, bytes) = match message {
            Message::Stdout(bytes) => (self.how.stdout, "standard output", bytes),
            Message::Stderr(bytes) => (self.how.stderr, "standard error", bytes),
            Message::Exited(exit) => return Ok(Some(Outcome::Exited(exit))),
            Message::Started(_) | Message::StdinCredit(_) => return Ok(None),
            other => return Err(unexpected(&session.wire, &other, "in a session")),
        };
        match write_all(fd, &bytes) {
            Ok(()) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(Some(Outcome::OutputClosed)),
            Err(source) => Err(ClientError::Local {
                doing: "write to",
                path: path.into(),
                source,
            }),
        }
    }

    /// Passes on what can be read; true when the detach byte was among it.
    fn input(&mut self, session: &mut Session, fd: BorrowedFd<'_>) -> Result<bool, ClientError> {
        let most = self.buffer.len().min(session.window());
        match rustix::io::read(fd, &mut self.buffer[..most]) {
            Ok(0) | Err(Errno::IO) => {
                self.stdin = None;
                session.send(Message::StdinEof);
            }
            Ok(count) => {
                let bytes = &self.buffer[..count];
                let cut = self
                    .how
                    .detach
                    .and_then(|key| bytes.iter().position(|&b| b == key));
                session.send_stdin(&bytes[..cut.unwrap_or(count)]);
                if cut.is_some() {
                    session.wire.flush("in a session")?;
                    return Ok(true);
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(e) => {
                return Err(ClientError::Local {
                    doing: "read",
                    path: "standard input".into(),
                    source: e.into(),
                });
            }
        }
        Ok(false)
    }

    fn signal(&mut self, session: &mut Session, signal: i32) -> Option<Outcome> {
        if signal == libc::SIGWINCH {
            if let Some(terminal) = self.how.stdin.and_then(terminal_size) {
                session.send(Message::Resize(Resize { terminal }));
            }
            return None;
        }
        if matches!(signal, libc::SIGINT | libc::SIGTERM) {
            self.asked += 1;
        }
        let ends = if self.how.terminal {
            matches!(signal, libc::SIGTERM | libc::SIGHUP)
        } else if self.how.detach.is_some() {
            // A console is left, not ended: it has no process of ours.
            matches!(signal, libc::SIGINT | libc::SIGTERM | libc::SIGHUP)
        } else {
            self.asked > PATIENCE
        };
        if ends {
            return Some(Outcome::Interrupted(signal as u8));
        }
        session.send(Message::Signal(Signal {
            signal: signal as u8,
        }));
        None
    }
}

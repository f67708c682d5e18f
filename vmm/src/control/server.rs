//! The machine's end of the control socket.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::message::{Answer, FailureKind, Operation, Request};

/// Longest request, in bytes: a path and little else.
const MAX_LINE: usize = 16 << 10;
/// Clients at once. More wait until one has gone.
const MAX_CLIENTS: usize = 16;

/// An operation that a client waits for.
#[derive(Debug)]
pub struct Incoming {
    /// What is wanted.
    pub operation: Operation,
    client: UnixStream,
}

impl Incoming {
    /// Answers. A client that does not take it is cut off: answers are short,
    /// so it has left many of them unread.
    pub fn answer(self, answer: &Answer) {
        send(&self.client, answer);
    }

    /// Whether the client still waits, to be asked from elsewhere.
    ///
    /// # Errors
    /// The process is out of file descriptors.
    pub fn waiting(&self) -> io::Result<Waiting> {
        self.client.try_clone().map(Waiting)
    }
}

/// A client that may go away before its operation is done.
#[derive(Debug)]
pub struct Waiting(UnixStream);

impl Waiting {
    /// Whether it is still there: one that has only said all that it will say
    /// is.
    pub fn goes_on(&self) -> bool {
        // Told without being asked for.
        let mut fds = [PollFd::new(&self.0, PollFlags::empty())];
        let asked = poll(&mut fds, Some(&Timespec::default()));
        asked.is_err() || !fds[0].revents().contains(PollFlags::HUP)
    }
}

fn send(mut client: &UnixStream, answer: &Answer) {
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    if !matches!(client.write(&line), Ok(written) if written == line.len()) {
        // Gone already, otherwise.
        let _ = client.shutdown(Shutdown::Both);
    }
}

/// Takes requests, for the event loop; whoever runs that performs them.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    listener: UnixListener,
    clients: BTreeMap<RawFd, Client>,
    incoming: Sender<Incoming>,
    is_full: bool,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    line: Vec<u8>,
}

impl Server {
    /// Makes the socket, with mode 0600; it is removed again on drop. What is
    /// asked for comes out of the receiver.
    ///
    /// # Errors
    /// What the system says.
    pub fn bind(path: &Path) -> io::Result<(Self, Receiver<Incoming>)> {
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let (sender, receiver) = channel();
        let server = Self {
            path: path.to_owned(),
            listener,
            clients: BTreeMap::new(),
            incoming: sender,
            is_full: false,
        };
        Ok((server, receiver))
    }

    fn accept(&mut self, ops: &mut EventOps) {
        while self.clients.len() < MAX_CLIENTS {
            let Ok((stream, _)) = self.listener.accept() else {
                return;
            };
            if stream.set_nonblocking(true).is_ok()
                && ops.add(Events::new(&stream, EventSet::IN)).is_ok()
            {
                let line = Vec::new();
                self.clients
                    .insert(stream.as_raw_fd(), Client { stream, line });
            }
        }
        // Not watched meanwhile: it would stay readable.
        self.is_full = ops.remove(Events::empty(&self.listener)).is_ok();
    }

    fn serve(&mut self, fd: RawFd, ops: &mut EventOps) {
        let Some(client) = self.clients.get_mut(&fd) else {
            return;
        };
        if client.take(&self.incoming) {
            return;
        }
        if let Some(client) = self.clients.remove(&fd) {
            let _ = ops.remove(Events::empty(&client.stream));
        }
        if self.is_full {
            self.is_full = false;
            self.watch(ops);
        }
    }

    fn watch(&self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.listener, EventSet::IN)) {
            eprintln!("insula-vmm: the control socket cannot be served: {error}");
        }
    }
}

impl Client {
    /// Takes what was sent. `false` if the client is done, or makes no sense.
    fn take(&mut self, incoming: &Sender<Incoming>) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => self.line.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
            while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.line.drain(..=end).collect();
                if !self.request(&line, incoming) {
                    return false;
                }
            }
            if self.line.len() > MAX_LINE {
                let message = format!("a request has at most {MAX_LINE} bytes");
                send(
                    &self.stream,
                    &Answer::error(FailureKind::BadRequest, message),
                );
                return false;
            }
        }
    }

    fn request(&self, line: &[u8], incoming: &Sender<Incoming>) -> bool {
        match Request::parse(line) {
            Ok(request) => {
                let Ok(client) = self.stream.try_clone() else {
                    return false;
                };
                let operation = request.operation;
                // Nobody performs anything any more when the machine ends.
                incoming.send(Incoming { operation, client }).is_ok()
            }
            Err(failure) => {
                send(&self.stream, &Answer::error(failure.kind, failure.message));
                true
            }
        }
    }
}

impl MutEventSubscriber for Server {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.listener.as_raw_fd() {
            self.accept(ops);
        } else {
            self.serve(events.fd(), ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.watch(ops);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The directory goes with the guest in any case.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_has_gone_does_not_wait() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let order = Incoming {
            operation: Operation::Status,
            client: theirs,
        };
        let waiting = order.waiting().unwrap();
        assert!(waiting.goes_on());
        // As `nc` does: it has said all, and waits.
        ours.write_all(b"x").unwrap();
        ours.shutdown(Shutdown::Write).unwrap();
        assert!(waiting.goes_on());
        drop(ours);
        assert!(!waiting.goes_on());
    }
}

//! The other end of a machine's control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::message::{
    AddressRange, Answer, AnswerResult, Counts, Done, Failure, Operation, Request, VERSION,
};

/// Longest answer, in bytes.
const MAX_LINE: u64 = 64 << 10;

/// Why an operation was not done.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The machine process could not be reached, or went away.
    #[error("cannot reach the machine on {}: {source}", path.display())]
    Io {
        /// Its socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What it said is no answer.
    #[error("the machine on {} answered something else: {reason}", path.display())]
    Malformed {
        /// Its socket.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It refused, or failed.
    #[error("{}", .0.message)]
    Refused(Failure),
}

/// A connection to a machine's control socket.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`ControlError::Io`].
    pub fn connect(path: &Path) -> Result<Self, ControlError> {
        let stream = UnixStream::connect(path).map_err(|source| ControlError::Io {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            stream: BufReader::new(stream),
        })
    }

    /// Has the machine do something, and waits so long for it.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn perform(
        &mut self,
        operation: Operation,
        patience: Duration,
    ) -> Result<Done, ControlError> {
        match self.ask(operation, patience)? {
            AnswerResult::Done(done) => Ok(done),
            _ => Err(self.malformed("it is about something else".to_owned())),
        }
    }

    /// What has been counted of the machine.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn counts(&mut self, patience: Duration) -> Result<Counts, ControlError> {
        match self.ask(Operation::Counts, patience)? {
            AnswerResult::Counts(counts) => Ok(counts),
            _ => Err(self.malformed("it is about something else".to_owned())),
        }
    }

    /// Where the machine's process has the guest's memory.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn memory(&mut self, patience: Duration) -> Result<Vec<AddressRange>, ControlError> {
        match self.ask(Operation::Memory, patience)? {
            AnswerResult::Memory(ranges) => Ok(ranges),
            _ => Err(self.malformed("it is about something else".to_owned())),
        }
    }

    fn malformed(&self, reason: String) -> ControlError {
        ControlError::Malformed {
            path: self.path.clone(),
            reason,
        }
    }

    fn ask(
        &mut self,
        operation: Operation,
        patience: Duration,
    ) -> Result<AnswerResult, ControlError> {
        let request = Request {
            version: VERSION,
            operation,
        };
        let answered = self.exchange(&request, patience);
        let line = answered.map_err(|source| ControlError::Io {
            path: self.path.clone(),
            source,
        })?;
        let answer: Answer =
            serde_json::from_slice(&line).map_err(|error| self.malformed(error.to_string()))?;
        match answer.result {
            AnswerResult::Error(failure) => Err(ControlError::Refused(failure)),
            answered => Ok(answered),
        }
    }

    fn exchange(&mut self, request: &Request, patience: Duration) -> io::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let stream = self.stream.get_mut();
        stream.set_write_timeout(Some(patience))?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(&line)?;
        let mut answer = Vec::new();
        (&mut self.stream)
            .take(MAX_LINE)
            .read_until(b'\n', &mut answer)?;
        if answer.last() != Some(&b'\n') {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it ended before it answered",
            ));
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::thread;

    use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};

    use super::super::message::{FailureKind, MachineState};
    use super::super::server::Server;
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Serves `count` operations: status is done, all else fails.
    fn serve(path: &Path, count: usize) -> thread::JoinHandle<()> {
        let (server, incoming) = Server::bind(path).unwrap();
        thread::spawn(move || {
            let mut events = EventManager::<Box<dyn MutEventSubscriber + Send>>::new().unwrap();
            events.add_subscriber(Box::new(server));
            let mut served = 0;
            while served < count {
                events.run().unwrap();
                while let Ok(request) = incoming.try_recv() {
                    let answer = match request.operation {
                        Operation::Status => Answer::done(Done {
                            state: MachineState::Running,
                            snapshot: None,
                        }),
                        _ => Answer::error(FailureKind::Failed, "it is only a test"),
                    };
                    request.answer(&answer);
                    served += 1;
                }
            }
        })
    }

    #[test]
    fn operations_are_performed_and_answered_in_turn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let server = serve(&path, 3);
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut client = Client::connect(&path).unwrap();
        let done = client.perform(Operation::Status, PATIENCE).unwrap();
        assert_eq!(done.state, MachineState::Running);
        let error = client.perform(Operation::Pause, PATIENCE).unwrap_err();
        assert_eq!(error.to_string(), "it is only a test");
        let mut second = Client::connect(&path).unwrap();
        second.perform(Operation::Status, PATIENCE).unwrap();
        server.join().unwrap();
        assert!(!path.exists());
        let gone = client.perform(Operation::Status, PATIENCE).unwrap_err();
        assert!(matches!(gone, ControlError::Io { .. }), "{gone}");
    }

    #[test]
    fn what_makes_no_sense_is_answered_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let server = serve(&path, 1);
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"{}\n").unwrap();
        let mut lines = BufReader::new(client.try_clone().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.contains("bad-request"), "{line}");

        // A line without end: its sender is told, then cut off.
        let _ = client.write_all(&vec![b'x'; 64 << 10]);
        let mut rest = Vec::new();
        let _ = lines.read_to_end(&mut rest);
        let mut second = Client::connect(&path).unwrap();
        second.perform(Operation::Status, PATIENCE).unwrap();
        server.join().unwrap();
    }

    #[test]
    fn more_clients_than_there_is_room_for_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let server = serve(&path, 40);
        let mut clients: Vec<_> = (0..40).map(|_| Client::connect(&path).unwrap()).collect();
        for mut client in clients.drain(..) {
            client.perform(Operation::Status, PATIENCE).unwrap();
        }
        server.join().unwrap();
    }
}

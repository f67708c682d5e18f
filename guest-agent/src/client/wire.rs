//! A connection as frames in and out, without blocking.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::error::ClientError;
use crate::protocol::{Decoder, Frame, FrameError};

/// Bytes asked of the socket at once.
const READ_SIZE: usize = 256 * 1024;

/// One connection.
#[derive(Debug)]
pub(super) struct Wire {
    fd: OwnedFd,
    endpoint: String,
    decoder: Decoder,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Wire {
    pub(super) fn new(fd: OwnedFd, endpoint: String) -> Self {
        Self {
            fd,
            endpoint,
            decoder: Decoder::new(),
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
        }
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Adds a frame to what is to be sent.
    pub(super) fn queue(&mut self, frame: &Frame) {
        frame.encode(&mut self.output);
    }

    /// Bytes queued and not yet sent.
    pub(super) fn unsent(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Sends as much as the socket takes.
    pub(super) fn flush(&mut self, doing: &'static str) -> Result<(), ClientError> {
        while self.unsent() > 0 {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match send(&self.fd, &self.output[self.sent..], flags) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                // The agent's last words may still be there to be read.
                Err(Errno::PIPE | Errno::CONNRESET) => break,
                Err(e) => return Err(self.failed(e, doing)),
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(())
    }

    /// The next frame that has arrived whole; reads what is there.
    pub(super) fn next(&mut self, doing: &'static str) -> Result<Option<Frame>, ClientError> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Ok(Some(frame)),
                Ok(None) => {}
                // Something newer than us, not in answer to anything we asked.
                Err((0, FrameError::Kind(_))) => continue,
                Err((_, source)) => {
                    return Err(ClientError::Frame {
                        endpoint: self.endpoint.clone(),
                        source,
                    });
                }
            }
            self.input.resize(READ_SIZE, 0);
            match recv(&self.fd, &mut self.input[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(Errno::CONNRESET) => {
                    return Err(ClientError::Closed {
                        endpoint: self.endpoint.clone(),
                        doing,
                    });
                }
                Ok((count, _)) => self.decoder.push(&self.input[..count]),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(e) => return Err(self.failed(e, doing)),
            }
        }
    }

    /// Sends what is queued and waits for the next frame.
    pub(super) fn wait(
        &mut self,
        within: Option<Duration>,
        doing: &'static str,
    ) -> Result<Frame, ClientError> {
        let deadline = within.map(|within| Instant::now() + within);
        loop {
            self.flush(doing)?;
            if let Some(frame) = self.next(doing)? {
                return Ok(frame);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(self.late(within.unwrap_or_default(), doing));
            }
            let mut fds = [PollFd::new(&self.fd, self.interest())];
            wait_for(&mut fds, left).map_err(|e| self.failed(e, doing))?;
        }
    }

    /// What to poll the socket for.
    pub(super) fn interest(&self) -> PollFlags {
        if self.unsent() > 0 {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        }
    }

    pub(super) fn late(&self, within: Duration, doing: &'static str) -> ClientError {
        ClientError::Timeout {
            endpoint: self.endpoint.clone(),
            doing,
            within,
        }
    }

    pub(super) fn failed(&self, source: Errno, doing: &'static str) -> ClientError {
        ClientError::Io {
            endpoint: self.endpoint.clone(),
            doing,
            source: source.into(),
        }
    }
}

/// `poll` for at most `within`; an interruption is a return without events.
pub(super) fn wait_for(fds: &mut [PollFd<'_>], within: Option<Duration>) -> Result<(), Errno> {
    let timeout = within.map(|within| Timespec {
        tv_sec: i64::try_from(within.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(within.subsec_nanos()),
    });
    match poll(fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Writes all of `bytes` to a blocking descriptor.
pub(super) fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            // Somebody made our standard output non-blocking: wait for it.
            Err(Errno::AGAIN) => {
                wait_for(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], None)?;
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

//! A session's process: its streams and its end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::io::{fcntl_dupfd_cloexec, ioctl_fionbio, ioctl_fionread};
use rustix::pipe::{PipeFlags, pipe_with};

use super::outbox::Outbox;
use crate::protocol::{Exit, Message, Name, STDIN_WINDOW, StdinCredit, Terminal, frame};
use crate::sys;
use crate::vps::launch::window_size;

/// Input that is given back as a credit at once; less waits until all is taken.
const CREDIT_STEP: usize = 32 * 1024;

/// Standard input, as the index of a stream.
pub(crate) const STDIN: u8 = 0;
/// Standard output, or the terminal's.
pub(crate) const STDOUT: u8 = 1;
/// Standard error.
pub(crate) const STDERR: u8 = 2;

/// Our end of a stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) fd: OwnedFd,
    pub(crate) registered: EventFlags,
    /// Bytes still to be read after the process's end, once its grace is over.
    left: Option<u64>,
}

/// The process's ends of its streams.
#[derive(Debug)]
pub(crate) struct FarEnds(pub(crate) [OwnedFd; 3]);

impl FarEnds {
    pub(crate) fn borrowed(&self) -> [BorrowedFd<'_>; 3] {
        self.0.each_ref().map(AsFd::as_fd)
    }
}

/// The size of a terminal whose size nobody knows.
pub(crate) const NO_SIZE: Terminal = Terminal {
    rows: 24,
    columns: 80,
};

/// A session's process.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its PID; 0 once it was reaped and the number may be another's.
    pub(crate) pid: i32,
    /// The VPS that it is the init of, for a run.
    pub(crate) init_of: Option<Name>,
    pub(crate) streams: [Option<Stream>; 3],
    terminal: bool,
    /// Input that the process has not taken.
    input: Vec<u8>,
    input_ended: bool,
    /// Bytes taken and not yet given back.
    credit: usize,
    exit: Option<Exit>,
}

/// What to do about a process after something happened to it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Go on.
    Going,
    /// Its end and its output's have been seen.
    Ended(Exit),
}

/// Three pipes: our ends, and the process's.
pub(crate) fn pipes() -> Result<([OwnedFd; 3], FarEnds), Errno> {
    let (stdin_far, stdin) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stdout, stdout_far) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, stderr_far) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((
        [stdin, stdout, stderr],
        FarEnds([stdin_far, stdout_far, stderr_far]),
    ))
}

fn stream(fd: OwnedFd) -> Result<Option<Stream>, Errno> {
    ioctl_fionbio(&fd, true)?;
    Ok(Some(Stream {
        fd,
        registered: EventFlags::empty(),
        left: None,
    }))
}

impl Process {
    /// A process with pipes.
    pub(crate) fn with_pipes(pid: i32, ends: [OwnedFd; 3]) -> Result<Self, Errno> {
        let [stdin, stdout, stderr] = ends;
        Ok(Self::new(
            pid,
            false,
            [stream(stdin)?, stream(stdout)?, stream(stderr)?],
        ))
    }

    /// A process on the terminal with that master side.
    pub(crate) fn with_terminal(pid: i32, master: OwnedFd) -> Result<Self, Errno> {
        let input = fcntl_dupfd_cloexec(&master, 3)?;
        Ok(Self::new(
            pid,
            true,
            [stream(input)?, stream(master)?, None],
        ))
    }

    fn new(pid: i32, terminal: bool, streams: [Option<Stream>; 3]) -> Self {
        Self {
            pid,
            init_of: None,
            streams,
            terminal,
            input: Vec::new(),
            input_ended: false,
            credit: 0,
            exit: None,
        }
    }

    /// Takes input from the client; false when it sent more than it may.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> bool {
        if self.streams[0].is_none() {
            // Nobody reads it: taken, and dropped.
            self.credit += bytes.len();
            return true;
        }
        if self.input_ended || self.input.len() + bytes.len() > STDIN_WINDOW {
            return false;
        }
        self.input.extend_from_slice(bytes);
        true
    }

    /// The client has no more input.
    pub(crate) fn end_input(&mut self) {
        if self.terminal && !self.input_ended {
            // A terminal has no end but the character that stands for it.
            self.input.push(0x04);
        }
        self.input_ended = true;
    }

    /// Writes what the process takes of its input, and gives credit for it.
    pub(crate) fn pour(&mut self, session: u32, outbox: &mut Outbox) {
        if let Some(stdin) = &self.streams[0] {
            let mut taken = 0;
            let mut closed = false;
            while taken < self.input.len() {
                match rustix::io::write(&stdin.fd, &self.input[taken..]) {
                    Ok(count) => taken += count,
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    // The process has closed its input.
                    Err(_) => {
                        closed = true;
                        taken = self.input.len();
                    }
                }
            }
            self.input.drain(..taken);
            self.credit += taken;
            // Closing the input of a terminal would be closing half of its
            // master: the end character has been written.
            let ended = self.input_ended && self.input.is_empty() && !self.terminal;
            if closed || ended {
                self.streams[0] = None;
                self.input = Vec::new();
            }
        }
        if self.credit >= CREDIT_STEP || (self.credit > 0 && self.input.is_empty()) {
            let bytes = self.credit as u32;
            outbox.push(session, Message::StdinCredit(StdinCredit { bytes }));
            self.credit = 0;
        }
    }

    /// Reads once from output stream `which`.
    pub(crate) fn drain(
        &mut self,
        which: u8,
        session: u32,
        scratch: &mut [u8],
        outbox: &mut Outbox,
    ) {
        let index = usize::from(which);
        let Some(Some(stream)) = self.streams.get_mut(index) else {
            return;
        };
        let most = stream
            .left
            .map_or(scratch.len(), |left| scratch.len().min(left as usize));
        match rustix::io::read(&stream.fd, &mut scratch[..most]) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if stream.left.is_none() => {}
            Ok(count) if count > 0 => {
                let kind = if which == STDERR {
                    frame::STDERR
                } else {
                    frame::STDOUT
                };
                outbox.push_data(kind, session, &scratch[..count]);
                if let Some(left) = &mut stream.left {
                    *left -= count as u64;
                    if *left == 0 {
                        self.streams[index] = None;
                    }
                }
            }
            // The end, or a terminal whose last user is gone.
            _ => self.streams[index] = None,
        }
    }

    /// The process has ended and was reaped.
    pub(crate) fn ended(&mut self, exit: Exit) {
        self.exit = Some(exit);
        self.pid = 0;
    }

    /// The grace for output that other processes keep open is over: what is
    /// in the pipes now is the last that is passed on.
    pub(crate) fn end_grace(&mut self) {
        for slot in &mut self.streams[1..] {
            let left = slot
                .as_ref()
                .and_then(|stream| ioctl_fionread(&stream.fd).ok());
            match left {
                Some(left) if left > 0 => {
                    if let Some(stream) = slot {
                        stream.left = Some(left);
                    }
                }
                _ => *slot = None,
            }
        }
    }

    /// Whether all is said.
    pub(crate) fn progress(&self) -> Progress {
        match self.exit {
            Some(exit) if self.streams[1].is_none() && self.streams[2].is_none() => {
                Progress::Ended(exit)
            }
            _ => Progress::Going,
        }
    }

    /// What a stream has to be watched for.
    pub(crate) fn wanted(&self, which: u8, outbox: &Outbox) -> EventFlags {
        match which {
            STDIN if !self.input.is_empty() => EventFlags::OUT,
            STDIN => EventFlags::empty(),
            _ if outbox.has_room() => EventFlags::IN,
            _ => EventFlags::empty(),
        }
    }

    /// Gives the terminal a new size.
    pub(crate) fn resize(&self, size: Terminal) {
        if let Some(stream) = self.streams[usize::from(STDOUT)]
            .as_ref()
            .filter(|_| self.terminal)
        {
            // A terminal that is gone needs no size.
            let _ = rustix::termios::tcsetwinsize(stream.fd.as_fd(), window_size(size));
        }
    }

    /// Sends `signal` to the process and its group.
    pub(crate) fn signal(&self, signal: i32) {
        if self.pid > 0 && sys::kill(-self.pid, signal).is_err() {
            // It may have left its group, or ended just now.
            let _ = sys::kill(self.pid, signal);
        }
    }

    /// The client is gone: the process is hung up, as by a terminal.
    pub(crate) fn hang_up(&self) {
        self.signal(libc::SIGHUP);
        // A stopped process must wake to hear it.
        self.signal(libc::SIGCONT);
    }
}

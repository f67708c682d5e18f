//! The agent's own call to its host, which it keeps for its whole life.
//!
//! Whatever breaks the call, the agent dials again: at once, then ever more
//! slowly, and after some time no more. A guest that was restored from a
//! snapshot finds all its connections reset, and hears on this one who it is.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::sockopt::socket_error;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::hello;
use super::poller::{Poller, Token};
use super::timers::MS;
use crate::protocol::{Decoder, Frame, Message, Restored};

/// Attempts to dial before nobody is expected to answer any more: half a
/// minute.
const ATTEMPTS: u32 = 16;
/// Before the second attempt; doubled for each that follows …
const FIRST_DELAY: u64 = 10 * MS;
/// … up to this.
const LAST_DELAY: u64 = 5_000 * MS;
/// A call that lasted so long was a good one.
const GOOD: u64 = 60_000 * MS;

/// Makes this a machine of its own: random numbers, clock, names. An error is
/// final, and says why the copy must not go on.
pub type Assume = Box<dyn Fn(&Restored) -> Result<(), String> + Send>;

/// Sets the wall clock, in nanoseconds since the Unix epoch.
pub type SetClock = Box<dyn Fn(u64) + Send>;

/// What the agent's call needs of the machine that it runs on.
pub struct Ways {
    /// Begins to dial the host; done when the socket is writable.
    pub dial: Box<dyn Fn() -> Result<OwnedFd, Errno> + Send>,
    /// What to do when the host says that the guest was restored.
    pub assume: Assume,
    /// What to do when the host says what time it is.
    pub set_clock: SetClock,
}

impl fmt::Debug for Ways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ways")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It rings.
    Calling,
    /// The hello is sent.
    Up { since: u64 },
    /// There is no call, but there will be.
    Lost,
    /// Nobody answers.
    GivenUp,
}

/// The call.
#[derive(Debug)]
pub struct HostLine {
    ways: Ways,
    nonce: [u8; 16],
    generation: Option<[u8; 16]>,
    socket: Option<OwnedFd>,
    registered: EventFlags,
    state: State,
    decoder: Decoder,
    attempts: u32,
    last_ping: u32,
}

/// What came of the call.
#[derive(Debug, PartialEq)]
pub(super) enum News {
    Nothing,
    /// The hello is sent.
    Up,
    /// The answer to the last [`HostLine::ping`] of this call.
    Alive,
    /// The guest was restored. With the request's identifier.
    Restored(u32, Box<Restored>),
    /// It is lost; see [`HostLine::next_dial`].
    Lost,
}

impl HostLine {
    /// A call on which a hello with `nonce` was said already, in `socket`.
    pub fn new(socket: OwnedFd, nonce: [u8; 16], ways: Ways) -> Self {
        Self {
            ways,
            nonce,
            generation: None,
            socket: Some(socket),
            registered: EventFlags::empty(),
            state: State::Up { since: 0 },
            decoder: Decoder::new(),
            attempts: 0,
            last_ping: 0,
        }
    }

    /// The call's socket, where there is a call.
    pub fn into_socket(self) -> Option<OwnedFd> {
        self.socket
            .filter(|_| matches!(self.state, State::Up { .. }))
    }

    /// Which restore of a snapshot this machine is.
    pub(super) fn generation(&self) -> Option<[u8; 16]> {
        self.generation
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.state == State::GivenUp
    }

    /// Watches the call for what it waits for.
    pub(super) fn watch(&mut self, poller: &Poller) -> Result<(), Errno> {
        let wanted = match self.state {
            State::Calling => EventFlags::OUT,
            _ => EventFlags::IN,
        };
        match &self.socket {
            Some(socket) => poller.set(socket, Token::Host, &mut self.registered, wanted),
            None => Ok(()),
        }
    }

    /// Dials, unless there is a call; false when that fails at once.
    pub(super) fn dial(&mut self, poller: &Poller) -> bool {
        if self.socket.is_some() {
            return true;
        }
        self.attempts += 1;
        self.state = State::Calling;
        match (self.ways.dial)() {
            Ok(socket) => self.socket = Some(socket),
            Err(_) => return false,
        }
        self.watch(poller).is_ok()
    }

    /// Lets the call go and says in how many nanoseconds to dial again; `None`
    /// when nobody is expected to answer any more.
    pub(super) fn lose(&mut self, now: u64, poller: &Poller) -> Option<u64> {
        if let Some(socket) = self.socket.take() {
            // Closing it is enough, where this fails.
            let _ = poller.set(
                &socket,
                Token::Host,
                &mut self.registered,
                EventFlags::empty(),
            );
        }
        self.registered = EventFlags::empty();
        self.decoder = Decoder::new();
        self.last_ping = self.last_ping.wrapping_add(1);
        if let State::Up { since } = self.state
            && now.saturating_sub(since) > GOOD
        {
            self.attempts = 0;
        }
        let delay = delay(self.attempts);
        self.state = match delay {
            Some(_) => State::Lost,
            None => State::GivenUp,
        };
        delay
    }

    /// Begins to count attempts anew.
    pub(super) fn hope(&mut self) {
        self.attempts = 0;
        if self.state == State::GivenUp {
            self.state = State::Lost;
        }
    }

    /// Something happened to the socket.
    pub(super) fn ready(&mut self, now: u64, poller: &Poller) -> News {
        let Some(socket) = &self.socket else {
            return News::Nothing;
        };
        if self.state == State::Calling {
            if !matches!(socket_error(socket), Ok(Ok(()))) {
                return News::Lost;
            }
            self.state = State::Up { since: now };
            let said = self.say(0, hello(&self.nonce));
            return if said && self.watch(poller).is_ok() {
                News::Up
            } else {
                News::Lost
            };
        }
        let mut bytes = [0; 512];
        match recv(socket, &mut bytes[..], RecvFlags::DONTWAIT) {
            Ok((count, _)) if count > 0 => {
                self.decoder.push(&bytes[..count]);
                News::Nothing
            }
            Err(Errno::AGAIN | Errno::INTR) => News::Nothing,
            _ => News::Lost,
        }
    }

    /// The next thing that the host has said.
    pub(super) fn hear(&mut self) -> News {
        loop {
            match self.decoder.next_frame() {
                Ok(None) => return News::Nothing,
                Ok(Some(frame)) => match frame.message {
                    Message::Done if frame.id == self.last_ping => {
                        self.attempts = 0;
                        return News::Alive;
                    }
                    Message::Restored(restored) => {
                        return News::Restored(frame.id, Box::new(restored));
                    }
                    Message::Clock(clock) => (self.ways.set_clock)(clock.wall_clock_ns),
                    // Of a newer host.
                    _ => {}
                },
                Err((_, crate::protocol::FrameError::Length(_))) => return News::Lost,
                Err(_) => {}
            }
        }
    }

    /// Asks for a sign of life. False: the call is lost.
    pub(super) fn ping(&mut self) -> bool {
        self.last_ping = self.last_ping.wrapping_add(1);
        self.say(self.last_ping, Message::Ping)
    }

    /// Makes this the machine that `restored` says.
    ///
    /// # Errors
    /// It can't be made one.
    pub(super) fn assume(&mut self, restored: &Restored) -> Result<(), String> {
        (self.ways.assume)(restored)?;
        self.nonce = restored.nonce;
        self.generation = Some(restored.generation);
        self.attempts = 0;
        Ok(())
    }

    /// Sends a message, which is small. False: the call is lost.
    pub(super) fn say(&self, id: u32, message: Message) -> bool {
        let Some(socket) = &self.socket else {
            return false;
        };
        let bytes = Frame::new(id, message).to_bytes();
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        send(socket.as_fd(), &bytes, flags) == Ok(bytes.len())
    }
}

/// The time before the next attempt when `attempts` have been made.
fn delay(attempts: u32) -> Option<u64> {
    match attempts {
        0 => Some(0),
        ATTEMPTS.. => None,
        _ => Some(
            FIRST_DELAY
                .saturating_mul(1 << (attempts - 1))
                .min(LAST_DELAY),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dialling_is_quick_at_first_and_ends() {
        let delays: Vec<u64> = (0..100).map_while(delay).map(|ns| ns / MS).collect();
        assert_eq!(delays[..5], [0, 10, 20, 40, 80]);
        assert_eq!(delays.len(), ATTEMPTS as usize);
        assert_eq!(delays.last(), Some(&5_000));
        assert!((20_000..60_000).contains(&delays.iter().sum::<u64>()));
    }
}

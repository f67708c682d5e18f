//! What the agent waits for.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

/// What became ready. Connections are numbered without reuse, so that an
/// event that is still in hand when its connection ends finds nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// The signal descriptor.
    Signals,
    /// The agent's own call to the host.
    Host,
    /// A listener, by index.
    Listener(u32),
    /// A connection's socket.
    Socket(u32),
    /// A stream of a connection's process: 0, 1 or 2.
    Stream(u32, u8),
    /// A VPS's console, by the number of its start.
    Console(u32),
    /// The memory of VPSs.
    Memory,
    /// Processes that are about to be held, by index.
    Held(u32),
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, number) = match self {
            Self::Signals => (0, 0),
            Self::Host => (1, 0),
            Self::Listener(number) => (2, number),
            Self::Socket(number) => (3, number),
            Self::Stream(number, which) => (4 + u64::from(which), number),
            Self::Console(number) => (7, number),
            Self::Memory => (8, 0),
            Self::Held(number) => (9, number),
        };
        kind << 32 | u64::from(number)
    }

    fn decode(data: u64) -> Self {
        let number = data as u32;
        match data >> 32 {
            0 => Self::Signals,
            1 => Self::Host,
            2 => Self::Listener(number),
            3 => Self::Socket(number),
            kind @ 4..=6 => Self::Stream(number, (kind - 4) as u8),
            7 => Self::Console(number),
            8 => Self::Memory,
            _ => Self::Held(number),
        }
    }
}

/// A level-triggered epoll.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
        })
    }

    /// Makes `wanted` what is waited for on `fd`; `current` is what was.
    ///
    /// Nothing wanted means not registered: epoll reports hang-ups of what is
    /// registered whether they are wanted or not, for ever.
    pub(crate) fn set(
        &self,
        fd: impl AsFd,
        token: Token,
        current: &mut EventFlags,
        wanted: EventFlags,
    ) -> Result<(), Errno> {
        if *current == wanted {
            return Ok(());
        }
        let data = EventData::new_u64(token.encode());
        if wanted.is_empty() {
            epoll::delete(&self.epoll, fd)?;
        } else if current.is_empty() {
            epoll::add(&self.epoll, fd, data, wanted)?;
        } else {
            epoll::modify(&self.epoll, fd, data, wanted)?;
        }
        *current = wanted;
        Ok(())
    }

    /// Waits for at most `within` nanoseconds and puts what is ready into
    /// `ready`. An interruption is a return with nothing.
    pub(crate) fn wait(
        &self,
        within: Option<u64>,
        ready: &mut Vec<(Token, EventFlags)>,
    ) -> Result<(), Errno> {
        let timeout = within.map(|ns| Timespec {
            tv_sec: (ns / 1_000_000_000) as i64,
            tv_nsec: (ns % 1_000_000_000) as i64,
        });
        let mut events = [const { std::mem::MaybeUninit::<Event>::uninit() }; 32];
        match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((events, _)) => {
                // The fields of a packed structure are copied before use.
                ready.extend(events.iter().map(|event| {
                    let (data, flags) = (event.data, event.flags);
                    (Token::decode(data.u64()), flags)
                }));
                Ok(())
            }
            Err(Errno::INTR) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for token in [
            Token::Signals,
            Token::Host,
            Token::Listener(3),
            Token::Socket(u32::MAX),
            Token::Stream(9, 0),
            Token::Stream(9, 2),
            Token::Console(1),
            Token::Memory,
            Token::Held(1),
        ] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}

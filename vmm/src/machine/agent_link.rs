//! The agent's call to its host: hello, which is the readiness signal, and
//! goodbye; in a restored guest, who it is from now on.
//!
//! The guest's end is not trusted. Any process of the guest that may dial the
//! host's port can speak here, so only a hello with the guest's nonce counts,
//! and only on such a connection anything else. All other calls are closed and
//! change nothing.
//!
//! A restored guest's agent dials again, because its connections were reset,
//! and says hello with the nonce that the snapshot knows. It is told what
//! makes the guest a machine of its own, and the guest is ready when it has
//! said that it is; from then on it proves itself by its new nonce.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_agent::protocol::{
    Clock, Decoder, Frame, FrameError, Goodbye, GoodbyeReason, Hello, MAJOR, MINOR, Message,
    Restored, Resumed,
};
use rustix::time::{ClockId, clock_gettime};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::boot_timer::{BootTimer, Step};
use crate::config::BootNonce;
use crate::devices::virtio::vsock::HostConnection;

/// Bytes of an unfinished frame that are kept. What an agent says here is far
/// smaller.
const MAX_PENDING: usize = 64 << 10;

/// Request identifier of [`Message::Restored`].
const RESTORED_ID: u32 = 1;

/// Request identifier of [`Message::Clock`], which has no answer.
const CLOCK_ID: u32 = 0;

/// Why a call is closed.
#[derive(Debug, Error)]
pub enum CallError {
    /// It is not our protocol.
    #[error("malformed frame: {0}")]
    Frame(#[from] FrameError),
    /// A frame is larger than it can be here.
    #[error("a frame of more than {MAX_PENDING} bytes")]
    TooLarge,
    /// The first message was no hello.
    #[error("the first message is no hello")]
    NoHello,
    /// The nonce is wrong.
    #[error("the hello lacks this boot's nonce: it is not from this guest's agent")]
    Nonce,
    /// The agent is of another generation.
    #[error(
        "the agent speaks version {0}.x of the protocol, this program {MAJOR}.{MINOR}: \
             rebuild the guest's initramfs (insula image build)"
    )]
    Version(u16),
    /// It says that another restore than this one is done.
    #[error("the agent has resumed as another generation than it was told")]
    Generation,
    /// Something else came after the hello.
    #[error("unexpected message of kind {0}")]
    Unexpected(u8),
}

/// What is known of the agent.
#[derive(Debug)]
struct State {
    /// What a hello must carry.
    nonce: BootNonce,
    /// What the agent of a restored guest is to be told, until it has said
    /// that it is done.
    restored: Option<Box<Restored>>,
    ready: bool,
    /// The call on which the agent has said hello last.
    line: Option<HostConnection>,
    goodbye: Option<GoodbyeReason>,
    refused: Option<String>,
    incompatible: Option<String>,
}

/// Takes the agent's calls. Clones share what they know.
#[derive(Debug, Clone)]
pub struct AgentLink(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    timer: Arc<BootTimer>,
    state: Mutex<State>,
    news: EventFd,
}

impl AgentLink {
    /// For a guest that boots and proves itself by `nonce`.
    ///
    /// # Errors
    /// The process is out of file descriptors.
    pub fn new(nonce: BootNonce, timer: Arc<BootTimer>) -> io::Result<Self> {
        Self::with(nonce, None, timer)
    }

    /// For a guest that is restored from a snapshot that was taken while it
    /// proved itself by `nonce`. Its agent is told `restored`, with the wall
    /// clock of that moment, and the guest is ready when it has said
    /// [`Resumed`] to that.
    ///
    /// # Errors
    /// The process is out of file descriptors.
    pub fn for_restore(
        nonce: BootNonce,
        restored: Restored,
        timer: Arc<BootTimer>,
    ) -> io::Result<Self> {
        Self::with(nonce, Some(Box::new(restored)), timer)
    }

    fn with(
        nonce: BootNonce,
        restored: Option<Box<Restored>>,
        timer: Arc<BootTimer>,
    ) -> io::Result<Self> {
        let state = State {
            nonce,
            restored,
            ready: false,
            line: None,
            goodbye: None,
            refused: None,
            incompatible: None,
        };
        Ok(Self(Arc::new(Shared {
            timer,
            state: Mutex::new(state),
            news: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })))
    }

    /// Something in the guest dialled the host's port. The first time it is the
    /// agent's very first act.
    pub fn call(&self) -> AgentCall {
        self.0.timer.stamp(Step::Init);
        AgentCall {
            link: self.clone(),
            decoder: Decoder::new(),
            greeted: false,
            told: false,
            over: false,
        }
    }

    /// Readable when something has changed.
    pub fn news(&self) -> &EventFd {
        &self.0.news
    }

    /// What the agent proves itself by now: to be kept with a snapshot.
    pub fn nonce(&self) -> BootNonce {
        self.state().nonce
    }

    /// Whether the agent has said hello, and in a restored guest that it has
    /// resumed.
    pub fn is_ready(&self) -> bool {
        self.state().ready
    }

    /// Why the agent went, if it has said goodbye.
    pub fn goodbye(&self) -> Option<GoodbyeReason> {
        self.state().goodbye.clone()
    }

    /// Why the last call was refused.
    pub fn refused(&self) -> Option<String> {
        self.state().refused.clone()
    }

    /// Why the guest's own agent cannot be understood.
    pub fn incompatible(&self) -> Option<String> {
        self.state().incompatible.clone()
    }

    /// The agent has said hello on this connection.
    pub(super) fn is_on(&self, line: HostConnection) {
        self.state().line = Some(line);
    }

    /// A connection has ended.
    pub(super) fn has_left(&self, line: HostConnection) {
        self.state().line.take_if(|current| *current == line);
    }

    /// What the time is, to be sent to an agent that has slept, and on which
    /// connection; none if there is no agent that could hear it. One that is
    /// to be told that its guest was restored hears the time with that.
    pub(super) fn tell_time(&self) -> Option<(HostConnection, Vec<u8>)> {
        let state = self.state();
        let line = state.line.filter(|_| state.ready)?;
        let clock = Clock {
            wall_clock_ns: wall_clock_ns(),
        };
        let bytes = Frame::new(CLOCK_ID, Message::Clock(clock)).to_bytes();
        Some((line, bytes))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        // It can only fail when it is full of unread news.
        let _ = self.0.news.write(1);
    }
}

/// One connection from the guest to the host's port.
#[derive(Debug)]
pub struct AgentCall {
    link: AgentLink,
    decoder: Decoder,
    greeted: bool,
    /// The agent was told on this call that its guest was restored.
    told: bool,
    over: bool,
}

impl AgentCall {
    /// Whether this is the agent: it has said hello.
    pub fn is_agent(&self) -> bool {
        self.greeted
    }

    /// Whether the agent has said goodbye. The connection is to be closed then:
    /// this is how the agent learns that it was heard and may reset the guest,
    /// which would otherwise outrun its last packet.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Takes bytes that arrived; returns what is to be sent in answer.
    ///
    /// # Errors
    /// A [`CallError`]; the connection is to be closed.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<Vec<u8>, CallError> {
        let mut answer = Vec::new();
        let heard = self.hear(bytes, &mut answer);
        if let Err(error) = &heard {
            let mut state = self.link.state();
            state.refused = Some(error.to_string());
            if matches!(error, CallError::Version(_)) {
                state.incompatible = Some(error.to_string());
                self.link.tell();
            }
        }
        heard.map(|()| answer)
    }

    fn hear(&mut self, bytes: &[u8], answer: &mut Vec<u8>) -> Result<(), CallError> {
        self.decoder.push(bytes);
        while let Some(frame) = self.decoder.next_frame().map_err(|(_, error)| error)? {
            match frame.message {
                Message::Hello(hello) if !self.greeted => self.greet(&hello, answer)?,
                _ if !self.greeted => return Err(CallError::NoHello),
                Message::Ping => Frame::new(frame.id, Message::Done).encode(answer),
                Message::Resumed(resumed) if self.told => self.resumed(&resumed)?,
                Message::Goodbye(Goodbye { reason }) => {
                    self.link.state().goodbye = Some(reason);
                    self.link.tell();
                    self.over = true;
                    return Ok(());
                }
                other => return Err(CallError::Unexpected(other.kind())),
            }
            // An agent takes its answers; what does not is no agent.
            if answer.len() > MAX_PENDING {
                return Err(CallError::TooLarge);
            }
        }
        if self.decoder.pending() > MAX_PENDING {
            return Err(CallError::TooLarge);
        }
        Ok(())
    }

    fn greet(&mut self, hello: &Hello, answer: &mut Vec<u8>) -> Result<(), CallError> {
        let mut state = self.link.state();
        // An agent whose call broke off before it was heard has the new one.
        let renewed = state.restored.as_ref().map(|restored| restored.nonce);
        if hello.secret != state.nonce.bytes()
            && renewed.is_none_or(|nonce| hello.secret != nonce.as_slice())
        {
            return Err(CallError::Nonce);
        }
        if hello.major != MAJOR {
            return Err(CallError::Version(hello.major));
        }
        self.greeted = true;
        if let Some(restored) = &state.restored {
            let restored = Restored {
                wall_clock_ns: wall_clock_ns(),
                ..Restored::clone(restored)
            };
            Frame::new(RESTORED_ID, Message::Restored(restored)).encode(answer);
            self.told = true;
            return Ok(());
        }
        state.ready = true;
        drop(state);
        self.ready();
        Ok(())
    }

    /// The agent says that its guest is a machine of its own.
    fn resumed(&mut self, resumed: &Resumed) -> Result<(), CallError> {
        self.told = false;
        let mut state = self.link.state();
        let Some(restored) = state
            .restored
            .take_if(|restored| restored.generation == resumed.generation)
        else {
            return Err(CallError::Generation);
        };
        state.nonce = BootNonce::new(restored.nonce);
        state.ready = true;
        drop(state);
        self.ready();
        Ok(())
    }

    fn ready(&self) {
        self.link.0.timer.stamp(Step::AgentReady);
        self.link.tell();
    }
}

/// Nanoseconds since the Unix epoch.
fn wall_clock_ns() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    (now.tv_sec as u64).saturating_mul(1_000_000_000) + now.tv_nsec as u64
}

#[cfg(test)]
mod tests;

//! The agent's call to its host: hello, which is the readiness signal, and
//! goodbye.
//!
//! The guest's end is not trusted. Any process of the guest that may dial the
//! host's port can speak here, so only a hello with the boot nonce counts, and
//! only on such a connection a goodbye. Everything else closes the connection
//! and changes nothing.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_agent::protocol::{
    Decoder, FrameError, Goodbye, GoodbyeReason, Hello, MAJOR, MINOR, Message,
};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::boot_timer::{BootTimer, Step};
use crate::config::BootNonce;

/// Bytes of an unfinished frame that are kept. A hello or goodbye is far
/// smaller.
const MAX_PENDING: usize = 64 << 10;

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
    /// Something else came after the hello.
    #[error("unexpected message of kind {0}")]
    Unexpected(u8),
}

/// What is known of the agent.
#[derive(Debug, Default)]
struct State {
    ready: bool,
    goodbye: Option<GoodbyeReason>,
    refused: Option<String>,
    incompatible: Option<String>,
}

/// Takes the agent's calls. Clones share what they know.
#[derive(Debug, Clone)]
pub struct AgentLink(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    nonce: BootNonce,
    timer: Arc<BootTimer>,
    state: Mutex<State>,
    news: EventFd,
}

impl AgentLink {
    /// For a guest that proves itself by `nonce`.
    ///
    /// # Errors
    /// The process is out of file descriptors.
    pub fn new(nonce: BootNonce, timer: Arc<BootTimer>) -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            nonce,
            timer,
            state: Mutex::default(),
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
            over: false,
        }
    }

    /// Readable when something has changed.
    pub fn news(&self) -> &EventFd {
        &self.0.news
    }

    /// Whether the agent has said hello.
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
    over: bool,
}

impl AgentCall {
    /// Whether the agent has said goodbye. The connection is to be closed then:
    /// this is how the agent learns that it was heard and may reset the guest,
    /// which would otherwise outrun its last packet.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Takes bytes that arrived. There is no answer but the connection's end.
    ///
    /// # Errors
    /// A [`CallError`]; the connection is to be closed.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), CallError> {
        let heard = self.hear(bytes);
        if let Err(error) = &heard {
            let mut state = self.link.state();
            state.refused = Some(error.to_string());
            if matches!(error, CallError::Version(_)) {
                state.incompatible = Some(error.to_string());
                self.link.tell();
            }
        }
        heard
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), CallError> {
        self.decoder.push(bytes);
        while let Some(frame) = self.decoder.next_frame().map_err(|(_, error)| error)? {
            match frame.message {
                Message::Hello(hello) if !self.greeted => self.greet(&hello)?,
                _ if !self.greeted => return Err(CallError::NoHello),
                Message::Goodbye(Goodbye { reason }) => {
                    self.link.state().goodbye = Some(reason);
                    self.link.tell();
                    self.over = true;
                    return Ok(());
                }
                other => return Err(CallError::Unexpected(other.kind())),
            }
        }
        if self.decoder.pending() > MAX_PENDING {
            return Err(CallError::TooLarge);
        }
        Ok(())
    }

    fn greet(&mut self, hello: &Hello) -> Result<(), CallError> {
        if hello.secret != self.link.0.nonce.bytes() {
            return Err(CallError::Nonce);
        }
        if hello.major != MAJOR {
            return Err(CallError::Version(hello.major));
        }
        self.greeted = true;
        self.link.0.timer.stamp(Step::AgentReady);
        self.link.state().ready = true;
        self.link.tell();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use guest_agent::protocol::Frame;

    use super::*;

    const NONCE: [u8; 16] = [7; 16];

    fn link() -> AgentLink {
        AgentLink::new(BootNonce::new(NONCE), Arc::new(BootTimer::default())).unwrap()
    }

    fn hello(secret: &[u8], major: u16) -> Vec<u8> {
        let hello = Hello {
            major,
            minor: 0,
            build: "test".to_owned(),
            secret: secret.to_vec(),
        };
        Frame::new(0, Message::Hello(hello)).to_bytes()
    }

    fn goodbye() -> Vec<u8> {
        let goodbye = Goodbye {
            reason: GoodbyeReason::Requested,
        };
        Frame::new(0, Message::Goodbye(goodbye)).to_bytes()
    }

    #[test]
    fn hello_in_pieces_makes_ready() {
        let link = link();
        let mut call = link.call();
        let bytes = hello(&NONCE, MAJOR);
        for byte in bytes {
            assert!(!link.is_ready());
            call.receive(&[byte]).unwrap();
        }
        assert!(link.is_ready());
        assert!(link.goodbye().is_none());
        assert!(!call.is_over());
        call.receive(&goodbye()).unwrap();
        assert!(call.is_over());
        assert_eq!(link.goodbye(), Some(GoodbyeReason::Requested));
    }

    #[test]
    fn a_wrong_nonce_changes_nothing() {
        let link = link();
        for secret in [&[8; 16][..], b"", &[7; 15]] {
            assert!(matches!(
                link.call().receive(&hello(secret, MAJOR)),
                Err(CallError::Nonce)
            ));
        }
        assert!(!link.is_ready());
        assert!(link.refused().unwrap().contains("nonce"));
    }

    #[test]
    fn goodbye_needs_a_hello_first() {
        let link = link();
        assert!(matches!(
            link.call().receive(&goodbye()),
            Err(CallError::NoHello)
        ));
        assert!(link.goodbye().is_none());
    }

    #[test]
    fn an_agent_of_another_generation_is_named() {
        let link = link();
        let mut call = link.call();
        assert!(matches!(
            call.receive(&hello(&NONCE, 99)),
            Err(CallError::Version(99))
        ));
        assert!(link.incompatible().unwrap().contains("99"));
    }

    #[test]
    fn garbage_and_endless_frames_are_refused() {
        let link = link();
        assert!(link.call().receive(&[0xff; 64]).is_err());
        let mut call = link.call();
        let mut endless = (1u32 << 19).to_le_bytes().to_vec();
        endless.resize(MAX_PENDING + 1, 0);
        assert!(matches!(call.receive(&endless), Err(CallError::TooLarge)));
    }
}

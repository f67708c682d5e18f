//! How a machine ends, and the place where the first to know says so.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::vcpu::{Stop, VcpuFailure};

/// How a machine ended. The text of the errors is for people.
#[derive(Debug, Error)]
pub enum Ending {
    /// The agent said goodbye and the guest powered off.
    #[error("the guest powered off")]
    PowerOff,
    /// The guest was reset without a goodbye: its kernel panicked, or its PID 1
    /// ended otherwise.
    #[error(
        "the guest was reset without a goodbye from its agent: its kernel panicked or its \
             init failed"
    )]
    Panicked,
    /// The agent said that it could not go on.
    #[error("the guest's agent gave up: {0}")]
    AgentFailed(String),
    /// A processor of the guest met a triple fault.
    #[error(transparent)]
    TripleFault(VcpuFailure),
    /// KVM or a device failed.
    #[error("{0}")]
    Failed(String),
    /// The agent did not say hello in time.
    #[error("the guest did not become ready within {timeout_ms} ms{refused}")]
    NeverReady {
        /// The time that it had.
        timeout_ms: u32,
        /// Why its last hello did not count, as the end of a sentence, or empty.
        refused: String,
    },
    /// Somebody else said hello, or said it wrongly.
    #[error("the guest's hello was refused: {0}")]
    BadHello(String),
    /// This process was asked to end.
    #[error("ended by signal {0}")]
    Signal(u8),
}

impl Ending {
    /// The exit code of the machine process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::PowerOff => 0,
            Self::Panicked | Self::AgentFailed(_) => 20,
            Self::TripleFault(_) => 21,
            Self::Failed(_) => 22,
            Self::NeverReady { .. } | Self::BadHello(_) => 24,
            Self::Signal(number) => 128u8.saturating_add(*number),
        }
    }
}

/// What a part of the machine says when it is over.
#[derive(Debug)]
pub enum Cause {
    /// The guest pulsed the reset line.
    Reset,
    /// A processor cannot go on.
    Vcpu(VcpuFailure),
    /// The machine cannot go on for a reason outside of the guest.
    Ending(Ending),
}

/// The first cause of the machine's end, and the event that tells of it.
#[derive(Debug, Clone)]
pub struct EndSignal(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    cause: Mutex<Option<Cause>>,
    event: EventFd,
    stop: Stop,
}

impl EndSignal {
    /// Nothing has ended yet.
    ///
    /// # Errors
    /// The process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            cause: Mutex::new(None),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            stop: Stop::default(),
        })))
    }

    /// Ends the machine. Only the first cause counts. The processors stop
    /// where they are: the guest does nothing more.
    pub fn raise(&self, cause: Cause) {
        let mut slot = self.0.cause.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = Some(cause);
            self.0.stop.set();
            // It can only fail when it is full of unread events.
            let _ = self.0.event.write(1);
        }
    }

    /// Readable once the machine has ended.
    pub fn event(&self) -> &EventFd {
        &self.0.event
    }

    /// What the processors look at.
    pub fn stop(&self) -> &Stop {
        &self.0.stop
    }

    /// Takes the cause, if there is one.
    pub fn take(&self) -> Option<Cause> {
        self.0
            .cause
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cause_counts() {
        let end = EndSignal::new().unwrap();
        assert!(!end.stop().is_set());
        end.raise(Cause::Ending(Ending::Signal(15)));
        end.raise(Cause::Reset);
        assert!(end.stop().is_set());
        assert_eq!(end.event().read().unwrap(), 1);
        assert!(matches!(
            end.take(),
            Some(Cause::Ending(Ending::Signal(15)))
        ));
    }

    #[test]
    fn exit_codes_are_distinct_where_they_should_be() {
        assert_eq!(Ending::PowerOff.exit_code(), 0);
        assert_eq!(Ending::Panicked.exit_code(), 20);
        assert_eq!(Ending::Failed(String::new()).exit_code(), 22);
        assert_eq!(
            Ending::NeverReady {
                timeout_ms: 1,
                refused: String::new()
            }
            .exit_code(),
            24
        );
        assert_eq!(Ending::Signal(15).exit_code(), 143);
    }
}

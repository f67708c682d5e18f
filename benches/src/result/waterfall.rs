//! The events of a start, defined once for every model.

use serde::{Deserialize, Serialize};

/// An event of a start. What "boot time" means in a publication is one of
/// these, minus another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// T0: the instance is asked for.
    Request,
    /// T1: the process that will carry it (VMM, runtime) was started.
    RuntimeStarted,
    /// T2: the first instruction of a guest kernel.
    KernelEntry,
    /// T3: the guest's init.
    Init,
    /// T4: the agent is ready, or the VPS's init was executed.
    Ready,
    /// T5: the network is up. Not measured yet.
    Network,
    /// T6: the first byte of the program's output, as the host received it.
    FirstByte,
    /// T7: the program's exit, as the host learned of it.
    Exit,
    /// T8: everything that the instance took is returned.
    Returned,
}

/// All events in order: event, short name, meaning.
pub const EVENTS: [(Event, &str, &str); 9] = [
    (Event::Request, "T0", "the instance is asked for"),
    (
        Event::RuntimeStarted,
        "T1",
        "its VMM or runtime process was started",
    ),
    (
        Event::KernelEntry,
        "T2",
        "first instruction of a guest kernel",
    ),
    (Event::Init, "T3", "the guest's init dials the host"),
    (
        Event::Ready,
        "T4",
        "the agent is ready, or the VPS's init was executed",
    ),
    (Event::Network, "T5", "the network is up (not measured yet)"),
    (
        Event::FirstByte,
        "T6",
        "first byte of the program's output at the host",
    ),
    (Event::Exit, "T7", "the program's exit at the host"),
    (Event::Returned, "T8", "everything is returned"),
];

/// When the events of one start happened, in nanoseconds after the request;
/// `null` for what the model does not have or nobody saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Waterfall {
    at_ns: [Option<u64>; 9],
}

impl Waterfall {
    /// A start that was asked for and nothing more.
    pub fn new() -> Self {
        let mut waterfall = Self::default();
        waterfall.set(Event::Request, 0);
        waterfall
    }

    /// Notes when an event happened.
    pub fn set(&mut self, event: Event, at_ns: u64) {
        self.at_ns[event as usize] = Some(at_ns);
    }

    /// When an event happened.
    pub fn get(&self, event: Event) -> Option<u64> {
        self.at_ns[event as usize]
    }

    /// Takes over what `other` knows.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.at_ns.iter_mut().zip(other.at_ns) {
            *mine = theirs.or(*mine);
        }
    }

    /// The events of a program that was executed `asked_ns` after the request
    /// for its instance: first byte and exit. Its own start is no event of the
    /// instance's.
    #[must_use]
    pub fn after_launch(&self, asked_ns: u64) -> Self {
        let mut shifted = Self::default();
        for event in [Event::FirstByte, Event::Exit] {
            if let Some(at_ns) = self.get(event) {
                shifted.set(event, at_ns + asked_ns);
            }
        }
        shifted
    }

    /// The first event that is earlier than one before it, if clocks or
    /// bookkeeping are that wrong.
    pub fn disorder(&self) -> Option<&'static str> {
        let mut latest = 0;
        for (at, (_, name, _)) in self.at_ns.iter().zip(EVENTS) {
            match at {
                Some(at) if *at < latest => return Some(name),
                Some(at) => latest = *at,
                None => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_kept_in_their_places() {
        for (index, (event, name, _)) in EVENTS.into_iter().enumerate() {
            assert_eq!(event as usize, index);
            assert_eq!(name, format!("T{index}"));
        }
    }

    #[test]
    fn disorder_is_seen() {
        let mut waterfall = Waterfall::new();
        waterfall.set(Event::FirstByte, 50);
        assert_eq!(waterfall.disorder(), None);
        waterfall.set(Event::Exit, 40);
        assert_eq!(waterfall.disorder(), Some("T7"));
    }

    #[test]
    fn absent_events_are_null() {
        let mut waterfall = Waterfall::new();
        waterfall.set(Event::Exit, 7);
        let json = serde_json::to_string(&waterfall).unwrap();
        assert_eq!(json, "[0,null,null,null,null,null,null,7,null]");
        assert_eq!(serde_json::from_str::<Waterfall>(&json).unwrap(), waterfall);
    }
}

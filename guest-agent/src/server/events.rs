//! What happened, for those who follow it.

use std::collections::VecDeque;

use super::timers::MS;
use crate::protocol::{Event, EventKind, Name};

/// Events that are kept.
const KEPT: usize = 256;

/// A bounded log of events.
#[derive(Debug, Default)]
pub(crate) struct EventLog {
    events: VecDeque<Event>,
    next: u64,
}

impl EventLog {
    pub(crate) fn push(&mut self, now: u64, name: Option<Name>, kind: EventKind) {
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        let event = Event {
            sequence: self.next,
            at_ms: now / MS,
            name,
            kind,
        };
        self.events.push_back(event);
        self.next += 1;
    }

    /// The first event that is kept and not older than `since`.
    pub(crate) fn at(&self, since: u64) -> Option<&Event> {
        let oldest = self.next - self.events.len() as u64;
        self.events.get(since.saturating_sub(oldest) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_events_go_and_numbers_stay() {
        let mut log = EventLog::default();
        let name = Name::new("web").unwrap();
        assert!(log.at(0).is_none());
        for _ in 0..KEPT + 10 {
            log.push(5 * MS, Some(name.clone()), EventKind::Started);
        }
        assert_eq!(log.at(0).unwrap().sequence, 10);
        assert_eq!(log.at(200).unwrap().sequence, 200);
        assert_eq!(log.at(265).unwrap().at_ms, 5);
        assert!(log.at(266).is_none());
    }
}

//! Deadlines.

use std::collections::BTreeSet;

use rustix::time::{ClockId, clock_gettime};

use crate::protocol::Name;

/// Nanoseconds since the kernel booted.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// One millisecond.
pub(crate) const MS: u64 = 1_000_000;

/// What is due. Whoever it is for checks whether it still applies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// A connection must have said hello, or be gone.
    Closing(u32),
    /// A process's output has had its grace.
    Grace(u32),
    /// A VPS wants attention.
    Vps(Name),
    /// The agent dials its host again.
    Dial,
    /// A suspension has lasted long enough.
    Suspension,
}

/// All deadlines, soonest first.
#[derive(Debug, Default)]
pub(crate) struct Timers(BTreeSet<(u64, Due)>);

impl Timers {
    /// `due` at `at`.
    pub(crate) fn set(&mut self, at: u64, due: Due) {
        self.0.insert((at, due));
    }

    /// Not after all.
    pub(crate) fn clear(&mut self, at: u64, due: Due) {
        self.0.remove(&(at, due));
    }

    /// Nanoseconds until the next deadline.
    pub(crate) fn until_next(&self, now: u64) -> Option<u64> {
        self.0.first().map(|(at, _)| at.saturating_sub(now))
    }

    /// The next that is due at `now`.
    pub(crate) fn pop(&mut self, now: u64) -> Option<Due> {
        if self.0.first()?.0 > now {
            return None;
        }
        self.0.pop_first().map(|(_, due)| due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_come_in_order_and_not_early() {
        let mut timers = Timers::default();
        assert_eq!(timers.until_next(0), None);
        timers.set(20, Due::Grace(1));
        timers.set(10, Due::Closing(2));
        assert_eq!(timers.until_next(4), Some(6));
        assert_eq!(timers.until_next(12), Some(0));
        assert_eq!(timers.pop(9), None);
        assert_eq!(timers.pop(30), Some(Due::Closing(2)));
        assert_eq!(timers.pop(30), Some(Due::Grace(1)));
        assert_eq!(timers.pop(30), None);
        timers.set(40, Due::Dial);
        timers.clear(40, Due::Dial);
        assert_eq!(timers.until_next(0), None);
    }
}

//! The host's clock, by which everything is measured.

use rustix::time::{ClockId, clock_gettime};

/// Time since a request, on `CLOCK_MONOTONIC`, which the machine process's
/// boot timer uses too.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started_ns: u64,
}

impl Clock {
    /// Starts now.
    pub fn start() -> Self {
        Self {
            started_ns: now_ns(),
        }
    }

    /// Nanoseconds since the start.
    pub fn elapsed_ns(&self) -> u64 {
        now_ns().saturating_sub(self.started_ns)
    }

    /// An absolute time of the same clock as one since the start.
    pub fn since_start(&self, monotonic_ns: u64) -> u64 {
        monotonic_ns.saturating_sub(self.started_ns)
    }
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

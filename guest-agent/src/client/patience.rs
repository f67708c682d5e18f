//! How long an agent is waited for.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

static TIMES: AtomicU32 = AtomicU32::new(1);

/// From now on, waits so many times longer in this process: for agents whose
/// kernel is emulated an instruction at a time. At least once as long.
pub fn wait_longer(times: u32) {
    TIMES.store(times.max(1), Ordering::Relaxed);
}

/// A time that will do on a processor, for where the agent runs.
pub(super) fn stretched(time: Duration) -> Duration {
    time.saturating_mul(TIMES.load(Ordering::Relaxed))
}

//! What makes a guest a machine of its own: its random numbers, its clock,
//! its name.

use rustix::event::Timespec;
use rustix::fs::{Mode, OFlags, open};
use rustix::time::{ClockId, clock_gettime, clock_settime};

use crate::machine::renew_boot_id;
use crate::protocol::{Name, Restored};
use crate::server::log;
use crate::sys;

/// How late the host's time may come, at most, in nanoseconds.
const LATE: u64 = 1_000_000_000;

/// Takes the place of whatever the snapshot was of.
///
/// # Errors
/// The random numbers of this copy could not be made its own: it must not go
/// on. A wrong clock or name is only told.
pub(super) fn assume(restored: &Restored) -> Result<(), String> {
    // Before anything can draw a number.
    let random = open("/dev/random", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    random
        .and_then(|random| {
            sys::add_entropy(&random, &restored.entropy)?;
            sys::reseed(&random)
        })
        .map_err(|e| format!("cannot give this copy of a guest random numbers of its own: {e}"))?;
    set_clock(restored.wall_clock_ns);
    set_name(&restored.hostname);
    if let Err(e) = renew_boot_id() {
        log(&format!(
            "cannot give this copy a boot identity of its own: {e}"
        ));
    }
    Ok(())
}

/// Sets the host name.
pub(super) fn set_name(name: &Name) {
    if let Err(e) = rustix::system::sethostname(name.as_str().as_bytes()) {
        log(&format!("cannot set the host name: {e}"));
    }
}

/// Sets the wall clock after the guest stood still. The time comes late, by
/// what its way from the host took: after a pause that was even shorter the
/// clock is right enough as it is, and need not go backwards.
pub(super) fn catch_up(wall_clock_ns: u64) {
    let now = clock_gettime(ClockId::Realtime);
    let now_ns = (now.tv_sec as u64)
        .saturating_mul(1_000_000_000)
        .saturating_add(now.tv_nsec as u64);
    if !(wall_clock_ns..wall_clock_ns.saturating_add(LATE)).contains(&now_ns) {
        set_clock(wall_clock_ns);
    }
}

/// Sets the wall clock, in nanoseconds since the Unix epoch; 0 is unknown.
pub(super) fn set_clock(wall_clock_ns: u64) {
    if wall_clock_ns == 0 {
        return;
    }
    let time = Timespec {
        tv_sec: (wall_clock_ns / 1_000_000_000) as i64,
        tv_nsec: (wall_clock_ns % 1_000_000_000) as i64,
    };
    if let Err(e) = clock_settime(ClockId::Realtime, time) {
        log(&format!("cannot set the clock: {e}"));
    }
}

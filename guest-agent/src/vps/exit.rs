//! How a process, or a whole VPS, ended; and how to ask an init to end.

use rustix::process::WaitIdStatus;

use crate::protocol::{Exit, Init};

/// What a wait status means for an ordinary process.
pub fn from_wait(status: &WaitIdStatus) -> Exit {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code(code as u8),
        (None, Some(signal)) => Exit::Signal(signal as u8),
        (None, None) => Exit::Signal(0),
    }
}

/// What a wait status means for the init of a VPS.
///
/// The kernel turns `reboot(2)` in a PID namespace into the death of its PID 1
/// by SIGHUP (restart) or SIGINT (halt, power off). No other death of an init
/// looks so: from inside, signals without a handler do not reach it, and a
/// handler makes it exit.
pub fn of_init(status: &WaitIdStatus) -> Exit {
    match from_wait(status) {
        Exit::Signal(signal) if i32::from(signal) == libc::SIGHUP => Exit::Reboot,
        Exit::Signal(signal) if i32::from(signal) == libc::SIGINT => Exit::Halt,
        exit => exit,
    }
}

/// The signal that asks `init` for a clean power-off. A signal that a PID 1
/// does not handle is lost on it.
///
/// For the template's own init, `handled` says which signals it blocks,
/// catches or waits for (bit `n - 1` is signal `n`): systemd blocks
/// SIGRTMIN+4, which asks it to power off; busybox's init waits for SIGUSR2;
/// sysvinit catches SIGPWR. A command gets SIGTERM.
pub fn signal_for_stop(init: &Init, handled: u64) -> i32 {
    /// The kernel's SIGRTMIN + 2 is the C library's.
    const SIGRTMIN: i32 = 34;
    let has = |signal: i32| handled & (1 << (signal - 1)) != 0;
    match init {
        Init::Command(_) => libc::SIGTERM,
        Init::Template => [SIGRTMIN + 4, libc::SIGUSR2, libc::SIGPWR, libc::SIGTERM]
            .into_iter()
            .find(|signal| has(*signal))
            .unwrap_or(libc::SIGPWR),
    }
}

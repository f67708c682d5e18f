//! What an init does about being asked to stop, as far as the kernel tells.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// x86-64's numbers of the system calls in which a process lets time pass, or
/// waits for signals that it names.
const NANOSLEEP: u64 = 35;
const RT_SIGTIMEDWAIT: u64 = 128;
const CLOCK_NANOSLEEP: u64 = 230;

/// The signals that a process blocks (to read them), catches or waits for:
/// bit `n - 1` is signal `n`. 0 when it is gone.
pub(super) fn handled_signals(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    masks(&status) | awaited_signals(pid).unwrap_or(0)
}

fn masks(status: &str) -> u64 {
    status
        .lines()
        .filter_map(|line| {
            line.strip_prefix("SigBlk:")
                .or_else(|| line.strip_prefix("SigCgt:"))
        })
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .fold(0, |all, mask| all | mask)
}

/// The signals that a process is waiting for right now. The kernel shows them
/// as not blocked for that time, and busybox's init spends its life so.
fn awaited_signals(pid: i32) -> Option<u64> {
    let (number, set) = system_call(pid)?;
    if number != RT_SIGTIMEDWAIT {
        return None;
    }
    let mut mask = [0; 8];
    // The kernel has read it from there: it is the process's memory.
    File::open(format!("/proc/{pid}/mem"))
        .and_then(|memory| memory.read_exact_at(&mut mask, set))
        .ok()?;
    Some(u64::from_le_bytes(mask))
}

/// Whether a process does nothing but let time pass.
pub(super) fn only_sleeps(pid: i32) -> bool {
    system_call(pid).is_some_and(|(number, _)| matches!(number, NANOSLEEP | CLOCK_NANOSLEEP))
}

/// The system call that a process waits in, and its first argument.
fn system_call(pid: i32) -> Option<(u64, u64)> {
    parse_system_call(&fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?)
}

/// `128 0x7ffd… 0x0 … sp pc`, or `running`, or `-1 sp pc` outside of any.
fn parse_system_call(text: &str) -> Option<(u64, u64)> {
    let mut fields = text.split_whitespace();
    let number = fields.next()?.parse().ok()?;
    let argument = fields.next()?.strip_prefix("0x")?;
    Some((number, u64::from_str_radix(argument, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::sys;

    #[test]
    fn what_the_kernel_writes_is_understood() {
        assert_eq!(
            parse_system_call("128 0x7ffd0010 0x0 0x0 0x8 0x0 0x0 0x7ffd0000 0x4000\n"),
            Some((128, 0x7ffd_0010))
        );
        for other in ["running\n", "-1 0x7ffd 0x4000\n", "", "128"] {
            assert_eq!(parse_system_call(other), None, "{other:?}");
        }
        let status = "Name:\tx\nSigBlk:\t0000000000000800\nSigIgn:\t0000000000000001\n\
                      SigCgt:\t0000000000000002\n";
        assert_eq!(masks(status), 0x802);
    }

    #[test]
    fn a_sleeper_is_told_from_one_that_waits_for_signals() {
        let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = sleeper.id() as i32;
        let mut sleeps = false;
        for _ in 0..500 {
            sleeps = only_sleeps(pid);
            if sleeps {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let awaited = awaited_signals(pid);
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(sleeps);
        assert_eq!(awaited, None);
        assert_eq!(handled_signals(pid), 0);
    }

    #[test]
    fn signals_that_a_process_waits_for_are_seen() {
        let mask = 1u64 << (libc::SIGUSR2 - 1) | 1 << (libc::SIGCHLD - 1);
        let waiter = sys::fork().unwrap();
        let Some(pid) = waiter else {
            crate::vps::place::await_signals(mask);
            sys::exit_now(0)
        };
        let mut seen = 0;
        for _ in 0..500 {
            seen = awaited_signals(pid).unwrap_or(0);
            if seen != 0 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let _ = sys::kill(pid, libc::SIGKILL);
        let _ = rustix::process::waitpid(
            rustix::process::Pid::from_raw(pid),
            rustix::process::WaitOptions::empty(),
        );
        assert_eq!(seen, mask);
    }
}

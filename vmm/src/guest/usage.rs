//! What a machine process uses of the host, from `/proc` (proc(5)).

use std::fs;
use std::time::Duration;

use crate::machine::VCPU_THREAD_NAME;

/// Clock ticks a second, in which Linux tells processor times to programs,
/// whatever its own tick is.
const TICKS_PER_SECOND: u64 = 100;

/// The processor time of the threads that run virtual processors.
pub(super) fn vcpu_time(pid: u32) -> Option<Duration> {
    let mut ticks = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        // A thread that has ended meanwhile is no vCPU's.
        let Some(stat) = thread
            .ok()
            .and_then(|thread| fs::read_to_string(thread.path().join("stat")).ok())
        else {
            continue;
        };
        ticks += vcpu_ticks(&stat).unwrap_or(0);
    }
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// User and system time of a thread, if it runs a virtual processor: fields 14
/// and 15, the name being the second, in parentheses.
fn vcpu_ticks(stat: &str) -> Option<u64> {
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let number = name.strip_prefix(VCPU_THREAD_NAME)?;
    number.parse::<u8>().ok()?;
    let mut times = rest.split_whitespace().skip(11).take(2).map(str::parse);
    let (user, system): (u64, u64) = (times.next()?.ok()?, times.next()?.ok()?);
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_threads_of_virtual_processors_count() {
        let stat = |name: &str| format!("7 ({name}) S 1 7 7 0 -1 4194304 1 0 0 0 250 50 0 0 20 0");
        assert_eq!(vcpu_ticks(&stat("vcpu0")), Some(300));
        assert_eq!(vcpu_ticks(&stat("vcpu15")), Some(300));
        for name in ["insula-vmm", "vcpu", "vcpux", ") vcpu0"] {
            assert_eq!(vcpu_ticks(&stat(name)), None, "{name}");
        }
        assert_eq!(vcpu_ticks("7 (vcpu0"), None);
    }

    #[test]
    fn a_process_without_any_has_used_none() {
        assert_eq!(vcpu_time(std::process::id()), Some(Duration::ZERO));
        assert_eq!(vcpu_time(u32::MAX), None);
    }
}

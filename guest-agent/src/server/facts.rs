//! Facts about the agent and its kernel.

use std::fs;

use super::timers::{MS, now};
use super::{Agent, HostLine};
use crate::protocol::Info;
use crate::supervisor::Supervisor;

impl Agent {
    pub(super) fn facts(&self) -> Info {
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        // In pages of 4 KiB.
        let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let resident = statm
            .split(' ')
            .nth(1)
            .and_then(|pages| pages.parse::<u64>().ok());
        let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
        Info {
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            cpus: count_cpus(online.trim()),
            memory_bytes: kilobytes(&memory, "MemTotal:"),
            memory_available_bytes: kilobytes(&memory, "MemAvailable:"),
            uptime_ms: now() / MS,
            agent_resident_bytes: resident.unwrap_or(0) * 4096,
            templates: self
                .supervisor
                .as_ref()
                .map_or_else(|_| Vec::new(), Supervisor::template_names),
            vps_count: self.supervisor.as_ref().map_or(0, Supervisor::count) as u32,
            generation: self.host.as_ref().and_then(HostLine::generation),
            suspended: Some(!self.suspension.is_over()),
        }
    }
}

/// The bytes that a line `NAME  1234 kB` of `/proc/meminfo` stands for.
fn kilobytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

/// The CPUs in a list such as `0-3,5`.
fn count_cpus(list: &str) -> u32 {
    list.split(',')
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
            Some(last.saturating_sub(first).saturating_add(1))
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found() {
        let text = "MemTotal:         123 kB\nMemFree: 5 kB\n";
        assert_eq!(kilobytes(text, "MemTotal:"), 123 * 1024);
        assert_eq!(kilobytes(text, "Nothing:"), 0);
        assert_eq!(count_cpus("0"), 1);
        assert_eq!(count_cpus("0-3,5,8-9"), 7);
        assert_eq!(count_cpus(""), 0);
    }
}

//! Facts about the agent and its kernel.

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::read;
use rustix::thread::sched_getaffinity;

use super::timers::{MS, now};
use super::{Agent, HostLine};
use crate::protocol::Info;
use crate::supervisor::Supervisor;

impl Agent {
    pub(super) fn facts(&self) -> Info {
        let memory = small_file("/proc/meminfo");
        // In pages of 4 KiB.
        let statm = small_file("/proc/self/statm");
        let resident = statm
            .split(' ')
            .nth(1)
            .and_then(|pages| pages.parse::<u64>().ok());
        Info {
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            cpus: sched_getaffinity(None).map_or(0, |set| set.count()),
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

/// What the kernel says in one of its small files, in as few system calls as can
/// be: this is the first thing that a caller asks for. Nothing where it fails.
fn small_file(path: &str) -> String {
    let mut bytes = [0; 4096];
    let count = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|file| read(&file, &mut bytes))
        .unwrap_or(0);
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found() {
        let text = "MemTotal:         123 kB\nMemFree: 5 kB\n";
        assert_eq!(kilobytes(text, "MemTotal:"), 123 * 1024);
        assert_eq!(kilobytes(text, "Nothing:"), 0);
    }

    #[test]
    fn small_files_are_read_whole() {
        let memory = small_file("/proc/meminfo");
        assert!(kilobytes(&memory, "MemTotal:") > 0);
        assert!(memory.ends_with('\n') && memory.contains("\nDirectMap"));
        assert_eq!(small_file("/nothing/here"), "");
    }
}

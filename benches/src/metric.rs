//! What is measured, in which unit, and what a plausible value is.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::models::ModelId;
use crate::name::find;

/// A measurement of the comparison; some yield more than one [`Metric`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Measurement {
    /// Prime counting: what the CPU does without the kernel.
    #[serde(rename = "cpu.prime")]
    CpuPrime,
    /// The cheapest system call.
    #[serde(rename = "sys.null")]
    SysNull,
    /// Creating processes.
    #[serde(rename = "proc.create")]
    ProcCreate,
    /// Taking page faults.
    #[serde(rename = "mem.fault")]
    MemFault,
    /// From the request for an instance to its program's output, and away again.
    #[serde(rename = "start.cold")]
    StartCold,
    /// The same with what carries the instance restored from a snapshot.
    #[serde(rename = "start.restore")]
    StartRestore,
    /// Several instances asked for at once.
    #[serde(rename = "start.burst")]
    StartBurst,
    /// What an idle instance takes of the host's memory.
    #[serde(rename = "density.mem")]
    DensityMem,
}

impl Measurement {
    /// All, in the order of reports.
    pub const ALL: [Self; 8] = [
        Self::CpuPrime,
        Self::SysNull,
        Self::ProcCreate,
        Self::MemFault,
        Self::StartCold,
        Self::StartRestore,
        Self::StartBurst,
        Self::DensityMem,
    ];

    /// Whether it can be done with a model: only what runs in a guest has a
    /// snapshot that it can be restored from.
    pub fn applies_to(self, model: ModelId) -> bool {
        self != Self::StartRestore || model.has_snapshots()
    }

    /// Its name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::CpuPrime => "cpu.prime",
            Self::SysNull => "sys.null",
            Self::ProcCreate => "proc.create",
            Self::MemFault => "mem.fault",
            Self::StartCold => "start.cold",
            Self::StartRestore => "start.restore",
            Self::StartBurst => "start.burst",
            Self::DensityMem => "density.mem",
        }
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Measurement {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        find("measurement", &Self::ALL, Self::name, name)
    }
}

/// One number of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Metric {
    /// Events a second.
    #[serde(rename = "cpu.prime")]
    CpuPrime,
    /// Nanoseconds a call.
    #[serde(rename = "sys.null")]
    SysNull,
    /// Microseconds for fork, exit, wait.
    #[serde(rename = "proc.create/fork")]
    ProcFork,
    /// Microseconds for fork, exec, exit, wait.
    #[serde(rename = "proc.create/exec")]
    ProcExec,
    /// Nanoseconds a page.
    #[serde(rename = "mem.fault")]
    MemFault,
    /// Milliseconds from the request (T0) to the first byte of the program (T6).
    #[serde(rename = "start.cold/first-byte")]
    StartFirstByte,
    /// Milliseconds from the request (T0) until all resources are back (T8).
    #[serde(rename = "start.cold/all-returned")]
    StartReturned,
    /// Milliseconds from the request (T0) to the first byte of the program
    /// (T6), what carries the instance restored from a snapshot.
    #[serde(rename = "start.restore/first-byte")]
    RestoreFirstByte,
    /// Milliseconds from the request for one instance, alone, to its first byte.
    #[serde(rename = "start.burst/1")]
    Burst1,
    /// Milliseconds from the request for ten at once to the last one's first byte.
    #[serde(rename = "start.burst/10")]
    Burst10,
    /// Milliseconds from the request for fifty at once to the last one's first byte.
    #[serde(rename = "start.burst/50")]
    Burst50,
    /// MiB of the host's available memory for each idle instance.
    #[serde(rename = "density.mem")]
    DensityMem,
}

impl Metric {
    /// All, in the order of reports.
    pub const ALL: [Self; 12] = [
        Self::CpuPrime,
        Self::SysNull,
        Self::ProcFork,
        Self::ProcExec,
        Self::MemFault,
        Self::StartFirstByte,
        Self::StartReturned,
        Self::RestoreFirstByte,
        Self::Burst1,
        Self::Burst10,
        Self::Burst50,
        Self::DensityMem,
    ];

    /// Those of bursts, the smallest first.
    pub const BURSTS: [Self; 3] = [Self::Burst1, Self::Burst10, Self::Burst50];

    /// Those that a workload in a running instance yields.
    pub const WORK: [Self; 5] = [
        Self::CpuPrime,
        Self::SysNull,
        Self::ProcFork,
        Self::ProcExec,
        Self::MemFault,
    ];

    /// The measurement that yields it.
    pub fn measurement(self) -> Measurement {
        match self {
            Self::CpuPrime => Measurement::CpuPrime,
            Self::SysNull => Measurement::SysNull,
            Self::ProcFork | Self::ProcExec => Measurement::ProcCreate,
            Self::MemFault => Measurement::MemFault,
            Self::StartFirstByte | Self::StartReturned => Measurement::StartCold,
            Self::RestoreFirstByte => Measurement::StartRestore,
            Self::Burst1 | Self::Burst10 | Self::Burst50 => Measurement::StartBurst,
            Self::DensityMem => Measurement::DensityMem,
        }
    }

    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::CpuPrime => "cpu.prime",
            Self::SysNull => "sys.null",
            Self::ProcFork => "proc.create/fork",
            Self::ProcExec => "proc.create/exec",
            Self::MemFault => "mem.fault",
            Self::StartFirstByte => "start.cold/first-byte",
            Self::StartReturned => "start.cold/all-returned",
            Self::RestoreFirstByte => "start.restore/first-byte",
            Self::Burst1 => "start.burst/1",
            Self::Burst10 => "start.burst/10",
            Self::Burst50 => "start.burst/50",
            Self::DensityMem => "density.mem",
        }
    }

    /// The argument of `insula-workload` that does its work, if one does.
    pub fn workload(self) -> Option<&'static str> {
        match self {
            Self::CpuPrime => Some("cpu.prime"),
            Self::SysNull => Some("sys.null"),
            Self::ProcFork => Some("proc.fork"),
            Self::ProcExec => Some("proc.exec"),
            Self::MemFault => Some("mem.fault"),
            _ => None,
        }
    }

    /// How many instances are asked for at once, where it is a burst.
    pub fn burst(self) -> Option<u32> {
        match self {
            Self::Burst1 => Some(1),
            Self::Burst10 => Some(10),
            Self::Burst50 => Some(50),
            _ => None,
        }
    }

    /// Operations in one unit of the workload's `--work`.
    pub fn operations_per_work(self) -> u64 {
        match self {
            Self::MemFault => 256,
            _ => 1,
        }
    }

    /// The unit of its values.
    pub fn unit(self) -> &'static str {
        match self {
            Self::CpuPrime => "events/s",
            Self::SysNull => "ns/call",
            Self::ProcFork | Self::ProcExec => "us",
            Self::MemFault => "ns/page",
            Self::StartFirstByte
            | Self::StartReturned
            | Self::RestoreFirstByte
            | Self::Burst1
            | Self::Burst10
            | Self::Burst50 => "ms",
            Self::DensityMem => "MiB/instance",
        }
    }

    /// Whether more is better.
    pub fn more_is_better(self) -> bool {
        matches!(self, Self::CpuPrime)
    }

    /// Nanoseconds for one operation into the unit.
    pub fn from_ns(self, ns: f64) -> f64 {
        match self {
            Self::CpuPrime => 1e9 / ns,
            Self::SysNull | Self::MemFault | Self::DensityMem => ns,
            Self::ProcFork | Self::ProcExec => ns / 1e3,
            Self::StartFirstByte
            | Self::StartReturned
            | Self::RestoreFirstByte
            | Self::Burst1
            | Self::Burst10
            | Self::Burst50 => ns / 1e6,
        }
    }

    /// What a value can be on any machine from the slowest emulator to the
    /// fastest hardware; outside, the measurement and not the machine is odd.
    pub fn plausible(self) -> (f64, f64) {
        match self {
            Self::CpuPrime => (0.5, 1e6),
            Self::SysNull | Self::ProcFork => (5.0, 1e6),
            Self::ProcExec => (20.0, 1e7),
            Self::MemFault => (10.0, 1e7),
            Self::StartFirstByte
            | Self::StartReturned
            | Self::RestoreFirstByte
            | Self::Burst1
            | Self::Burst10
            | Self::Burst50 => (0.01, 600_000.0),
            // Noise may be below nothing: leaving it out would push the rest up.
            Self::DensityMem => (-1024.0, 65_536.0),
        }
    }

    /// What it is, in one sentence for the report.
    pub fn definition(self) -> &'static str {
        match self {
            Self::CpuPrime => {
                "One event counts the primes below 20 000 by trial division. User code only: the \
                 kernel and the isolation should not matter."
            }
            Self::SysNull => {
                "One getppid(2), called directly: into the instance's kernel and back."
            }
            Self::ProcFork => "fork, _exit in the child, waitpid in the parent.",
            Self::ProcExec => {
                "fork, execve of the same static program, which exits at once, waitpid."
            }
            Self::MemFault => {
                "mmap of 1 MiB, a first write to each of its 4 KiB pages, munmap; divided by the \
                 pages. Huge pages are declined."
            }
            Self::StartFirstByte => {
                "From the request for a new instance (T0) to the first byte that its program \
                 wrote, as the host received it (T6)."
            }
            Self::StartReturned => {
                "From the request (T0) until the instance's processes, directories, cgroups and \
                 sockets are gone (T8)."
            }
            Self::RestoreFirstByte => {
                "As start.cold/first-byte, but with nothing of the instance running at T0: the \
                 guest that carries it (of a microvm its own, of a guest-vps the one that is \
                 shared, restored for this one) comes from a snapshot of the freshly booted guest."
            }
            Self::Burst1 | Self::Burst10 | Self::Burst50 => {
                "So many new instances asked for at once (T0), until the last of them has written \
                 its first byte: the time of the whole burst, not of one start in it. Guests are \
                 restored from a snapshot, of microvm one for each instance, of guest-vps one for \
                 all; processes and host-vps start as they always do."
            }
            Self::DensityMem => {
                "Slope (Theil-Sen) of the host's MemAvailable over the number of instances, each \
                 with one idle process. What instances share is not part of the slope."
            }
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Formats a value with three or four significant digits.
pub fn format_value(value: f64) -> String {
    let size = value.abs();
    if size >= 10_000.0 {
        // Thousands apart, by a thin space.
        let digits = format!("{size:.0}");
        let mut text = String::new();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                text.push('\u{2009}');
            }
            text.push(digit);
        }
        if value < 0.0 {
            format!("-{text}")
        } else {
            text
        }
    } else if size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 1.0 || size == 0.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_results() {
        for metric in Metric::ALL {
            assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
            assert!(metric.name().starts_with(metric.measurement().name()));
        }
        for measurement in Measurement::ALL {
            assert_eq!(
                serde_json::to_value(measurement).unwrap(),
                measurement.name()
            );
            assert_eq!(
                measurement.name().parse::<Measurement>().unwrap(),
                measurement
            );
        }
        assert!(
            "cpu.pi"
                .parse::<Measurement>()
                .unwrap_err()
                .contains("cpu.prime")
        );
    }

    #[test]
    fn values_are_short() {
        for (value, text) in [
            (0.0, "0.00"),
            (0.1234, "0.123"),
            (1.234, "1.23"),
            (12.34, "12.3"),
            (1234.5, "1234"),
            (12_345.6, "12\u{2009}346"),
            (-1_234_567.0, "-1\u{2009}234\u{2009}567"),
        ] {
            assert_eq!(format_value(value), text);
        }
    }
}

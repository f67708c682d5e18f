//! What a VPS is and how it is.

use std::fmt;

use minicbor::{Decode, Encode};

use super::name::Name;

/// Definition of a VPS.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct VpsSpec {
    /// Its name, unique in its kernel.
    #[n(0)]
    pub name: Name,
    /// The template that its root file system starts from.
    #[n(1)]
    pub template: Name,
    /// Its host name; the VPS's name when absent.
    #[n(2)]
    pub hostname: Option<Name>,
    /// What runs as its PID 1.
    #[n(3)]
    pub init: Init,
    /// Its limits.
    #[n(4)]
    pub limits: Limits,
    /// Whether the agent starts it when the guest boots.
    #[n(5)]
    pub autostart: bool,
    /// What a `reboot` from inside does.
    #[n(6)]
    pub restart: RestartPolicy,
}

/// What runs as PID 1 of a VPS.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum Init {
    /// The template's own `/sbin/init`.
    #[n(0)]
    Template,
    /// A command, with its arguments.
    #[n(1)]
    Command(#[n(0)] Vec<String>),
}

/// Limits of a VPS. `None` is unlimited.
#[derive(Debug, Clone, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Limits {
    /// Memory, in bytes, kernel memory and page cache included (`memory.max`).
    #[n(0)]
    pub memory_bytes: Option<u64>,
    /// CPU time in thousandths of a CPU (`cpu.max`): 1500 is one and a half.
    #[n(1)]
    pub cpu_milli: Option<u32>,
    /// Relative share under contention, 1 to 10000, default 100 (`cpu.weight`).
    #[n(2)]
    pub cpu_weight: Option<u32>,
    /// Processes and threads (`pids.max`).
    #[n(3)]
    pub pids: Option<u32>,
}

/// What happens when a VPS calls `reboot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum RestartPolicy {
    /// It comes back, unless it reboots more than five times in a minute.
    #[n(0)]
    AllowReboot,
    /// A reboot is taken as a halt.
    #[n(1)]
    Never,
}

/// How a process, or a whole VPS, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Exit {
    /// It exited with this status.
    #[n(0)]
    Code(#[n(0)] u8),
    /// A signal ended it.
    #[n(1)]
    Signal(#[n(0)] u8),
    /// The VPS called `reboot(RESTART)`.
    #[n(2)]
    Reboot,
    /// The VPS called `reboot(HALT)` or `reboot(POWER_OFF)`.
    #[n(3)]
    Halt,
}

impl Exit {
    /// The exit code that a shell would report: the status, or 128 + signal.
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128u8.saturating_add(signal),
            Self::Reboot | Self::Halt => 0,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Reboot => f.write_str("reboot"),
            Self::Halt => f.write_str("halt"),
        }
    }
}

/// Where a VPS is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum VpsState {
    /// Defined, not running.
    #[n(0)]
    Stopped,
    /// Its init is being started.
    #[n(1)]
    Starting,
    /// Its init runs.
    #[n(2)]
    Running,
    /// It was asked to stop and has not ended.
    #[n(3)]
    Stopping,
    /// It could not be started, or rebooted too often.
    #[n(4)]
    Failed,
}

impl fmt::Display for VpsState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        })
    }
}

/// A VPS as it is now.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct VpsInfo {
    /// Its definition.
    #[n(0)]
    pub spec: VpsSpec,
    /// Where it is in its life.
    #[n(1)]
    pub state: VpsState,
    /// How often its init was started since it was created.
    #[n(2)]
    pub boot_count: u32,
    /// PID of its init as the agent sees it, while it runs.
    #[n(3)]
    pub init_pid: Option<u32>,
    /// Milliseconds since its init was started, while it runs.
    #[n(4)]
    pub uptime_ms: Option<u64>,
    /// How it ended the last time.
    #[n(5)]
    pub last_exit: Option<Exit>,
    /// Why it failed.
    #[n(6)]
    pub failure: Option<String>,
    /// What it uses, while it runs.
    #[n(7)]
    pub usage: Option<Usage>,
}

/// What a VPS uses.
#[derive(Debug, Clone, Default, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Usage {
    /// Memory now, in bytes.
    #[n(0)]
    pub memory_bytes: u64,
    /// Most memory so far, in bytes.
    #[n(1)]
    pub memory_peak_bytes: u64,
    /// CPU time, in microseconds.
    #[n(2)]
    pub cpu_us: u64,
    /// Processes and threads now.
    #[n(3)]
    pub pids: u32,
    /// Processes that the kernel killed for want of memory.
    #[n(4)]
    pub oom_kills: u64,
    /// Forks that the process limit refused.
    #[n(5)]
    pub pids_refused: u64,
}

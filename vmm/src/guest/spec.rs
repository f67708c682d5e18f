//! What a guest is made of.

use std::path::PathBuf;

use guest_agent::protocol::{DiskRole, Name};

use crate::config::{HostKvm, MemSize, ReadyTimeout, VcpuCount};
use crate::pvm;

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    /// What kind of KVM it runs on.
    pub host_kvm: HostKvm,
    /// Number of virtual processors.
    pub vcpus: VcpuCount,
    /// Memory.
    pub memory: MemSize,
    /// ELF kernel image.
    pub kernel: PathBuf,
    /// Initramfs segments; the guest's boot configuration is added as the last.
    pub initrds: Vec<PathBuf>,
    /// Block devices in order: `vda`, `vdb`, …
    pub drives: Vec<Drive>,
    /// The kernel command line. The machine expects of it a console on
    /// `ttyS0`, and that a reset (`reboot=k`) is how a kernel ends, after a
    /// panic (`panic=-1`) too. What a PVM host needs of any kernel is put before it.
    pub cmdline: String,
    /// How long the guest may take to say hello.
    pub ready_timeout: ReadyTimeout,
    /// The guest's host name; its name when absent.
    pub hostname: Option<Name>,
    /// The template that is the machine's own root, for a microVM.
    pub machine_root: Option<Name>,
    /// Whether the boot is profiled.
    pub profile: bool,
    /// Whether the guest ends with the *thread* that started it, and its
    /// [`Guest`](super::Guest) stops it when dropped.
    pub ephemeral: bool,
}

/// A block device of a guest.
#[derive(Debug, Clone)]
pub struct Drive {
    /// What it holds. A template is read-only, a data disk is not.
    pub role: DiskRole,
    /// The file that holds it.
    pub path: PathBuf,
}

impl GuestSpec {
    /// Memory of a guest when nobody says otherwise, in MiB.
    pub const DEFAULT_MEMORY_MIB: u64 = 512;
    /// Readiness timeout when nobody says otherwise, in milliseconds: enough
    /// for an emulated host under load.
    pub const DEFAULT_READY_TIMEOUT_MS: u64 = 60_000;

    /// Readiness timeout on a PVM host when nobody says otherwise, in milliseconds: a
    /// kernel that was not made for it, on a slow day.
    pub const PVM_READY_TIMEOUT_MS: u64 = 600_000;

    /// A guest of this kernel and its command line, with one processor,
    /// default memory and nothing else.
    pub fn new(kernel: PathBuf, cmdline: &str) -> Self {
        Self {
            host_kvm: HostKvm::default(),
            vcpus: VcpuCount::MIN,
            // Both constants are within their bounds; the fallback never is used.
            memory: MemSize::try_from(Self::DEFAULT_MEMORY_MIB).unwrap_or(MemSize::MIN),
            kernel,
            initrds: Vec::new(),
            drives: Vec::new(),
            cmdline: cmdline.to_owned(),
            ready_timeout: ReadyTimeout::try_from(Self::DEFAULT_READY_TIMEOUT_MS)
                .unwrap_or(ReadyTimeout::MAX),
            hostname: None,
            machine_root: None,
            profile: false,
            ephemeral: false,
        }
    }

    /// Has the guest run on a KVM of this kind, and gives it the time that a boot
    /// takes there.
    pub fn run_on(&mut self, host_kvm: HostKvm) {
        self.host_kvm = host_kvm;
        let timeout = match host_kvm {
            HostKvm::Hardware => Self::DEFAULT_READY_TIMEOUT_MS,
            HostKvm::Pvm => Self::PVM_READY_TIMEOUT_MS,
        };
        self.ready_timeout = ReadyTimeout::try_from(timeout).unwrap_or(ReadyTimeout::MAX);
    }

    /// The whole command line of the kernel.
    pub(super) fn boot_args(&self) -> String {
        match self.host_kvm {
            HostKvm::Hardware => self.cmdline.trim().to_owned(),
            HostKvm::Pvm => [&pvm::cpuid::command_line(), self.cmdline.trim()]
                .join(" ")
                .trim()
                .to_owned(),
        }
    }
}

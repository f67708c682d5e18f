//! `insula-agent steady`: keeps the kernel of an emulated host from patching
//! its own code.
//!
//! Linux switches rarely taken branches on and off by rewriting instructions
//! ("static keys"). Some follow the number of users of a thing, such as the
//! virtual machines of KVM, and are rewritten whenever the first one comes and
//! the last one goes. QEMU before 8.1, with a thread for each processor, may go
//! on executing its translation of the breakpoint that stands there meanwhile,
//! and the emulated kernel dies of it. So this process is, for as long as it
//! lives, a user of each thing that commands in the lab come and go with:
//!
//! | key | held by |
//! | --- | --- |
//! | `preempt_notifier_key` | a virtual machine |
//! | `apic_sw_disabled` | a processor with an APIC that nobody has enabled yet |
//! | `apic_hw_disabled` | the same, its APIC switched off in `IA32_APIC_BASE` |
//! | `kvm_has_noapic_vcpu` | a processor of a machine without interrupt controllers |
//! | `memcg_sockets_enabled_key`, `cpusets_enabled_key` | a cgroup |
//! | `__cfs_bandwidth_used` | its `cpu.max` |
//! | `cgroup_bpf_enabled_key` | its program for devices |

mod kvm;

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};

use crate::server::log;
use crate::vps::bound_devices;

const USAGE: &str = "\
Usage: insula-agent steady

Keeps an emulated host's kernel from patching its own code as virtual machines
and cgroups come and go. Prints 'steady' as soon as it does, and goes on until
it is ended.
";

/// A cgroup without processes.
const CGROUP: &str = "/sys/fs/cgroup/insula-steady";

/// Runs `insula-agent steady`; returns the exit code.
pub fn main(mut args: impl Iterator<Item = std::ffi::OsString>) -> u8 {
    if args.next().is_some() {
        print!("{USAGE}");
        return 2;
    }
    // Each of them makes crashes rarer, also without the others.
    let machines = hold_kvm()
        .inspect_err(|e| log(&format!("steady: {e}")))
        .ok();
    let cgroup = hold_cgroup(Path::new(CGROUP)).inspect_err(|e| log(&format!("steady: {e}")));
    let mut stdout = std::io::stdout();
    if writeln!(stdout, "steady")
        .and_then(|()| stdout.flush())
        .is_err()
    {
        return 1;
    }
    if machines.is_none() && cgroup.is_err() {
        return 1;
    }
    loop {
        std::thread::park();
    }
}

fn hold_kvm() -> Result<[kvm::Held; 2], String> {
    let kvm = open("/dev/kvm", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| format!("cannot open /dev/kvm: {e}"))?;
    let with_apic = kvm::Held::with_apic_off(&kvm)
        .map_err(|e| format!("cannot keep a virtual machine with interrupt controllers: {e}"))?;
    let without = kvm::Held::without_apic(&kvm)
        .map_err(|e| format!("cannot keep a virtual machine without interrupt controllers: {e}"))?;
    Ok([with_apic, without])
}

fn hold_cgroup(dir: &Path) -> Result<(), String> {
    let failed = |what: &str, e: &dyn std::fmt::Display| {
        format!("cannot {what} the cgroup {}: {e}", dir.display())
    };
    match fs::create_dir(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(failed("make", &e));
        }
        _ => {}
    }
    fs::write(dir.join("cpu.max"), "100000 100000").map_err(|e| failed("limit", &e))?;
    let directory = open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| failed("open", &e))?;
    bound_devices(directory.as_fd()).map_err(|e| failed("bound the devices of", &e))
}

//! What a machine does for itself on a PVM host, where KVM emulates a guest's
//! supervisor code and leaves some of it out.
//!
//! `README.md` beside this file tells what such a host does and why each
//! repair is there. Nothing else in this program knows of them: the loop that
//! runs a processor sees an [`ExitRepair`], and on VT-x and SVM there is none
//! of this.

mod atomic;
mod counts;
pub mod cpuid;
mod exception;
mod extended;
mod instruction;
mod paging;
mod registers;
mod repair;
mod syscall;
mod timer;
mod xsave;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, kvm_enable_cap};
use kvm_ioctls::{
    Cap, Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, SyncReg, VmFd,
};

use self::repair::PvmRepair;
use crate::kvm::{KvmError, refused};
use crate::memory::GuestMemory;
use crate::vcpu::ExitRepair;

pub use self::counts::{Counts, RepairCounts};

/// What a kernel that was not made for such hosts is told beside: to leave out what
/// only costs instructions where each is emulated. (To patch every locked
/// instruction for one processor takes six million, to unpack the agent into a tmpfs
/// a third of a million more than into a ramfs.)
pub const SPARING: &str =
    "mitigations=off noreplace-smp no_timer_check lpj=1000000 rootfstype=ramfs";

/// What is needed of KVM: capability, its name, its purpose.
const REQUIRED: [(Cap, &str, &str); 3] = [
    (
        Cap::X86UserSpaceMsr,
        "KVM_CAP_X86_USER_SPACE_MSR",
        "system calls on a PVM host",
    ),
    (
        Cap::X86MsrFilter,
        "KVM_CAP_X86_MSR_FILTER",
        "system calls on a PVM host",
    ),
    (
        Cap::SetGuestDebug,
        "KVM_CAP_SET_GUEST_DEBUG",
        "system calls on a PVM host",
    ),
];

/// Registers for system calls. A set bit is one that is left to KVM: CSTAR, in the
/// middle.
const SYSCALL_MSRS: MsrFilterRange<'_> = MsrFilterRange {
    flags: MsrFilterRangeFlags::WRITE,
    base: syscall::MSR_STAR,
    msr_count: syscall::MSR_FMASK - syscall::MSR_STAR + 1,
    bitmap: &[0b0100],
};

/// The register that sets the timer.
const TIMER_MSR: MsrFilterRange<'_> = MsrFilterRange {
    flags: MsrFilterRangeFlags::WRITE,
    base: timer::MSR_TSC_DEADLINE,
    msr_count: 1,
    bitmap: &[0],
};

/// Has KVM tell of the guest's writes to these and to no other MSRs.
fn filter_msrs(vm: &VmFd, ranges: &[MsrFilterRange<'_>]) -> Result<(), KvmError> {
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, ranges)
        .map_err(refused("filter the guest's writes to MSRs"))
}

/// The repairs of one machine.
#[derive(Debug)]
pub struct Pvm {
    kernel: PathBuf,
    counts: Arc<Counts>,
    /// Whether the guest's timer is held back.
    is_booting: Arc<AtomicBool>,
}

impl Pvm {
    /// Prepares a machine that is to run `kernel`. To be called before it has
    /// processors.
    ///
    /// # Errors
    /// [`KvmError::Capability`] when this host lacks something.
    pub fn enable(kvm: &Kvm, vm: &VmFd, kernel: PathBuf) -> Result<Self, KvmError> {
        let missing = REQUIRED
            .into_iter()
            .find(|(capability, ..)| !kvm.check_extension(*capability));
        if let Some((_, name, purpose)) = missing {
            return Err(KvmError::Capability { name, purpose });
        }
        let synced =
            SyncReg::Register as i32 | SyncReg::SystemRegister as i32 | SyncReg::VcpuEvents as i32;
        if kvm.check_extension_int(Cap::SyncRegs) & synced != synced {
            return Err(KvmError::Capability {
                name: "KVM_CAP_SYNC_REGS",
                purpose: "registers at an exit on a PVM host",
            });
        }
        let exits = kvm_enable_cap {
            cap: KVM_CAP_X86_USER_SPACE_MSR,
            args: [u64::from(KVM_MSR_EXIT_REASON_FILTER), 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        vm.enable_cap(&exits)
            .map_err(refused("tell of the guest's writes to MSRs"))?;
        filter_msrs(vm, &[SYSCALL_MSRS])?;
        Ok(Self {
            kernel,
            counts: Arc::default(),
            is_booting: Arc::default(),
        })
    }

    /// The machine is about to boot: until [`Self::boot_is_over`] its timer is held
    /// back.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn boot_begins(&self, vm: &VmFd) -> Result<(), KvmError> {
        filter_msrs(vm, &[SYSCALL_MSRS, TIMER_MSR])?;
        self.is_booting.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The guest is ready: from now on its timer is KVM's alone.
    ///
    /// # Errors
    /// KVM refuses, so that each time the guest sets its timer this process is asked.
    pub fn boot_is_over(&self, vm: &VmFd) -> Result<(), KvmError> {
        if self.is_booting.swap(false, Ordering::Relaxed) {
            filter_msrs(vm, &[SYSCALL_MSRS])?;
        }
        Ok(())
    }

    /// The repairs of one of its processors, which runs on `memory`.
    pub fn repair(&self, memory: &GuestMemory) -> Box<dyn ExitRepair> {
        Box::new(PvmRepair::new(
            memory.clone(),
            self.kernel.clone(),
            Arc::clone(&self.counts),
            Arc::clone(&self.is_booting),
        ))
    }

    /// How often something was repaired.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }
}

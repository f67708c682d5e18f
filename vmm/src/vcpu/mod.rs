//! One virtual processor: its CPUID and registers, and the loop that runs it.

mod clock;
pub mod cpuid;
mod kick;
mod registers;
mod run;
mod sampler;
pub mod state;
mod stats;
#[cfg(test)]
mod testing;

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};

use crate::boot::EntryPoint;
use crate::kvm::{KvmError, refused};

pub(crate) use clock::time_stamp_counter;
pub use kick::Kick;
pub use run::{Buses, ExitRepair, NoRepair, Refusal, Repair, Stop, VcpuFailure};
pub use sampler::{Profile, Sampler};
pub use state::{StateSupport, VcpuState, VcpuStateError};
pub use stats::{ProcessorCounts, Statistics};

/// A virtual processor that is ready to run.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    id: u8,
}

impl Vcpu {
    /// Makes processor number `id`.
    ///
    /// # Errors
    /// [`KvmError::Request`].
    pub fn new(vm: &VmFd, id: u8) -> Result<Self, KvmError> {
        let fd = vm
            .create_vcpu(u64::from(id))
            .map_err(refused("create a virtual processor"))?;
        Ok(Self { fd, id })
    }

    /// Sets it up for boot with the leaves of its machine. The first processor
    /// starts at `entry`; the others wait for it to start them.
    ///
    /// # Errors
    /// [`KvmError::Request`].
    pub fn prepare(&self, cpuid: &mut CpuId, entry: EntryPoint) -> Result<(), KvmError> {
        // CPUID first: Linux 6.13 and newer let it decide which MSRs there are.
        cpuid::set_apic_id(cpuid, self.id);
        self.fd
            .set_cpuid2(cpuid)
            .map_err(refused("set a virtual processor's CPUID"))?;
        let xsave = cpuid::xsave_features(cpuid.as_slice());
        if xsave != 0 && cpuid::host_is_emulated() {
            registers::enable_xsave_features(&self.fd, xsave)?;
        }
        registers::set_msrs(&self.fd)?;
        registers::connect_lint_pins(&self.fd)?;
        if self.id == 0 {
            registers::enter_long_mode(&self.fd, entry)?;
        }
        Ok(())
    }

    /// Frequency of its time stamp counter in kHz, if KVM knows it.
    pub fn tsc_khz(&self) -> Option<u32> {
        self.fd.get_tsc_khz().ok().filter(|khz| *khz > 0)
    }

    /// Its number.
    pub fn id(&self) -> u8 {
        self.id
    }
}

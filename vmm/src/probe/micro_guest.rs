//! Runs micro-guests: one machine without devices, a fresh processor for each.

use std::fmt;
use std::time::{Duration, Instant};

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_msr_entry, kvm_regs, kvm_segment,
    kvm_sregs,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use super::image;
use crate::boot::long_mode;
use crate::config::{HugePages, MemSize};
use crate::kvm::{KvmError, refused};
use crate::memory::{self, GuestMemory, MemoryError, layout};

/// Why micro-guests cannot be run.
#[derive(Debug, Error)]
pub(super) enum MicroGuestError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Their memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// They do not fit.
    #[error("cannot write a micro-guest into its memory: {0}")]
    Image(vm_memory::GuestMemoryError),
}

/// How a micro-guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It said that it arrived, as the supervisor.
    Arrived,
    /// Anything else.
    Lost(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arrived => f.write_str("arrival"),
            Self::Lost(how) => f.write_str(how),
        }
    }
}

/// Time that the measured loop should take: enough to be far above what an
/// exit costs.
const LONG_ENOUGH: Duration = Duration::from_millis(2);
/// Turns to start with, and at most.
const FEWEST_TURNS: u64 = 1_000;
const MOST_TURNS: u64 = 4_000_000;
const INSTRUCTIONS_PER_TURN: u64 = 2;

const EFER_SYSCALL: u64 = 1;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_FMASK: u32 = 0xc000_0084;

/// A machine for micro-guests.
pub(super) struct MicroGuests {
    vm: VmFd,
    memory: GuestMemory,
    cpuid: CpuId,
    vcpus: u64,
}

impl MicroGuests {
    pub(super) fn new(kvm: &Kvm) -> Result<Self, MicroGuestError> {
        let vm = kvm
            .create_vm()
            .map_err(refused("create a virtual machine"))?;
        vm.set_tss_address(layout::KVM_TSS as usize)
            .map_err(refused("reserve its pages in the guest's memory"))?;
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("list the supported CPUID leaves"))?;
        let memory = memory::allocate(MemSize::MIN, HugePages::None)?;
        memory::register(&vm, &memory)?;
        memory
            .write_slice(&image::build(), GuestAddress(0))
            .map_err(MicroGuestError::Image)?;
        Ok(Self {
            vm,
            memory,
            cpuid,
            vcpus: 0,
        })
    }

    /// What KVM supports.
    pub(super) fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        self.cpuid.as_slice()
    }

    /// Supervisor instructions a second, measured by a loop.
    pub(super) fn supervisor_rate(&mut self) -> Result<Result<u64, Outcome>, KvmError> {
        let mut vcpu = self.vcpu()?;
        set_sregs(&vcpu, supervisor)?;
        let mut turns = FEWEST_TURNS;
        loop {
            let regs = kvm_regs {
                rip: image::LOOP,
                rcx: turns,
                ..initial_regs()
            };
            vcpu.set_regs(&regs)
                .map_err(refused("set a virtual processor's registers"))?;
            let start = Instant::now();
            let outcome = run(&mut vcpu);
            let elapsed = start.elapsed();
            if outcome != Outcome::Arrived {
                return Ok(Err(outcome));
            }
            if elapsed >= LONG_ENOUGH || turns >= MOST_TURNS {
                let nanoseconds = elapsed.as_nanos().max(1);
                let rate = u128::from(turns * INSTRUCTIONS_PER_TURN) * 1_000_000_000 / nanoseconds;
                return Ok(Ok(u64::try_from(rate).unwrap_or(u64::MAX)));
            }
            turns *= 4;
        }
    }

    /// Whether `SYSCALL` in user code arrives in supervisor code.
    pub(super) fn syscall(&mut self) -> Result<Outcome, KvmError> {
        let mut vcpu = self.vcpu()?;
        set_sregs(&vcpu, user)?;
        let entry = |index, data| kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        };
        // Bits 32 to 47: the kernel's code segment; from 48: what SYSRET uses.
        let star = u64::from(image::KERNEL_CODE_SELECTOR) << 32;
        let entries = [
            entry(MSR_STAR, star),
            entry(MSR_LSTAR, image::SYSCALL_ENTRY),
            entry(MSR_FMASK, 0),
        ];
        if let Ok(msrs) = Msrs::from_entries(&entries) {
            vcpu.set_msrs(&msrs)
                .map_err(refused("set a virtual processor's MSRs"))?;
        }
        let regs = kvm_regs {
            rip: image::USER_CODE,
            ..initial_regs()
        };
        vcpu.set_regs(&regs)
            .map_err(refused("set a virtual processor's registers"))?;
        let outcome = run(&mut vcpu);
        let sregs = vcpu
            .get_sregs()
            .map_err(refused("read a virtual processor's registers"))?;
        if outcome == Outcome::Arrived && sregs.cs.selector & 3 != 0 {
            return Ok(Outcome::Lost("arrival as the user".to_owned()));
        }
        Ok(outcome)
    }

    /// Whether supervisor code can carry out `instruction`.
    pub(super) fn instruction(&mut self, instruction: &[u8]) -> Result<Outcome, MicroGuestError> {
        let mut vcpu = self.vcpu()?;
        set_sregs(&vcpu, supervisor)?;
        self.memory
            .write_slice(&image::tested(instruction), GuestAddress(image::TESTED))
            .map_err(MicroGuestError::Image)?;
        let regs = kvm_regs {
            rip: image::TESTED,
            rdi: image::DATA,
            ..initial_regs()
        };
        vcpu.set_regs(&regs)
            .map_err(refused("set a virtual processor's registers"))?;
        Ok(run(&mut vcpu))
    }

    fn vcpu(&mut self) -> Result<VcpuFd, KvmError> {
        let vcpu = self
            .vm
            .create_vcpu(self.vcpus)
            .map_err(refused("create a virtual processor"))?;
        self.vcpus += 1;
        vcpu.set_cpuid2(&self.cpuid)
            .map_err(refused("set a virtual processor's CPUID"))?;
        Ok(vcpu)
    }
}

fn initial_regs() -> kvm_regs {
    kvm_regs {
        rsp: image::STACK,
        rflags: 2,
        ..kvm_regs::default()
    }
}

fn set_sregs(vcpu: &VcpuFd, privilege: fn(&mut kvm_sregs)) -> Result<(), KvmError> {
    let mut sregs = vcpu
        .get_sregs()
        .map_err(refused("read a virtual processor's registers"))?;
    long_mode::enable(&mut sregs, image::PML4);
    (sregs.gdt.base, sregs.gdt.limit) = (image::GDT, image::GDT_LIMIT);
    (sregs.idt.base, sregs.idt.limit) = (image::IDT, image::IDT_LIMIT);
    sregs.efer |= EFER_SYSCALL;
    privilege(&mut sregs);
    vcpu.set_sregs(&sregs)
        .map_err(refused("set a virtual processor's system registers"))
}

fn supervisor(_: &mut kvm_sregs) {}

fn user(sregs: &mut kvm_sregs) {
    let as_user = |segment: kvm_segment, selector| kvm_segment {
        selector,
        dpl: 3,
        ..segment
    };
    sregs.cs = as_user(long_mode::code_segment(), image::USER_CODE_SELECTOR);
    let data = as_user(long_mode::data_segment(), image::USER_DATA_SELECTOR);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
}

fn run(vcpu: &mut VcpuFd) -> Outcome {
    loop {
        return match vcpu.run() {
            Ok(VcpuExit::IoOut(image::ARRIVED_PORT, _)) => Outcome::Arrived,
            Ok(VcpuExit::InternalError) => Outcome::Lost("refusal by the emulator".to_owned()),
            Ok(VcpuExit::Shutdown) => Outcome::Lost("triple fault".to_owned()),
            Ok(other) => Outcome::Lost(format!("unexpected exit {other:?}")),
            Err(error) if error.errno() == libc::EINTR => continue,
            Err(error) => Outcome::Lost(format!("KVM cannot run it: {error}")),
        };
    }
}

//! The loop that runs a virtual processor and serves its exits.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_regs};
use kvm_ioctls::{VcpuExit, VcpuFd};
use thiserror::Error;

use super::sampler::Sampler;
use super::{Vcpu, kick};
use crate::devices::bus::Bus;

/// The address spaces that a guest's accesses go to.
#[derive(Debug, Default)]
pub struct Buses {
    /// I/O ports.
    pub pio: Bus,
    /// Memory that is not RAM.
    pub mmio: Bus,
}

/// Says to all processors of a machine that they should stop.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicU8>);

impl Stop {
    const RUN: u8 = 0;
    const PAUSE: u8 = 1;
    const END: u8 = 2;

    /// For good, from now on: the guest does nothing more.
    pub fn set(&self) {
        self.0.store(Self::END, Ordering::Release);
    }

    /// Whether that was said.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::END
    }

    /// Until [`Self::resume`]. Processors stop where their state is whole,
    /// once they are kicked.
    pub fn pause(&self) {
        self.exchange(Self::RUN, Self::PAUSE);
    }

    /// They may run again.
    pub fn resume(&self) {
        self.exchange(Self::PAUSE, Self::RUN);
    }

    /// Whether they are to stop in one way or the other.
    fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Acquire) != Self::RUN
    }

    /// The end is never taken back: then this does nothing.
    fn exchange(&self, from: u8, to: u8) {
        let _ = self
            .0
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// Why a processor cannot go on.
#[derive(Debug, Error)]
pub enum VcpuFailure {
    /// It met a fault while it delivered a double fault, or shut itself down.
    #[error("triple fault on virtual processor {vcpu}: {registers}")]
    TripleFault {
        /// Its number.
        vcpu: u8,
        /// Where it was.
        registers: Registers,
    },
    /// The guest asked for a reset through the hypervisor.
    #[error("virtual processor {vcpu} reset the machine")]
    Reset {
        /// Its number.
        vcpu: u8,
    },
    /// `KVM_RUN` failed.
    #[error("KVM cannot run virtual processor {vcpu}: {source}; {registers}")]
    Run {
        /// Its number.
        vcpu: u8,
        /// What the system said.
        source: kvm_ioctls::Error,
        /// Where it was.
        registers: Registers,
    },
    /// KVM gave up.
    #[error("KVM gave up on virtual processor {vcpu}: {reason}; {registers}")]
    GaveUp {
        /// Its number.
        vcpu: u8,
        /// What KVM says.
        reason: String,
        /// Where it was.
        registers: Registers,
    },
}

/// General registers for a message.
#[derive(Debug)]
pub struct Registers(Option<Box<kvm_regs>>);

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("its registers cannot be read"),
            Some(r) => write!(
                f,
                "rip={:#x} rsp={:#x} rflags={:#x} rax={:#x} rbx={:#x} rcx={:#x} rdx={:#x} \
                 rsi={:#x} rdi={:#x} rbp={:#x} r8={:#x} r9={:#x} r10={:#x} r11={:#x} r12={:#x} \
                 r13={:#x} r14={:#x} r15={:#x}",
                r.rip,
                r.rsp,
                r.rflags,
                r.rax,
                r.rbx,
                r.rcx,
                r.rdx,
                r.rsi,
                r.rdi,
                r.rbp,
                r.r8,
                r.r9,
                r.r10,
                r.r11,
                r.r12,
                r.r13,
                r.r14,
                r.r15
            ),
        }
    }
}

/// What came of an attempt to repair an exit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repair {
    /// The processor can go on.
    Resume,
    /// It can, once the instruction has caused a general-protection fault.
    Fault,
    /// Nobody knows this exit: it ends the guest.
    Unknown,
    /// The exit is known and ends the guest, for this reason.
    Impossible(String),
}

/// Repairs exits that end a guest on ordinary KVM, for hosts whose KVM leaves
/// part of its work to us.
pub trait ExitRepair: Send {
    /// The processor is about to run, for the first time or after a restore.
    fn start(&mut self, vcpu: &mut VcpuFd) -> Repair {
        let _ = vcpu;
        Repair::Resume
    }

    /// KVM gave up on an instruction (`KVM_EXIT_INTERNAL_ERROR`).
    fn internal_error(&mut self, vcpu: &mut VcpuFd) -> Repair {
        let _ = vcpu;
        Repair::Unknown
    }

    /// A breakpoint of ours was met (`KVM_EXIT_DEBUG`).
    fn debug(&mut self, vcpu: &mut VcpuFd) -> Repair {
        let _ = vcpu;
        Repair::Unknown
    }

    /// The guest wrote an MSR that is filtered (`KVM_EXIT_X86_WRMSR`).
    fn write_msr(&mut self, vcpu: &mut VcpuFd, index: u32, value: u64) -> Repair {
        let _ = (vcpu, index, value);
        Repair::Unknown
    }
}

/// Repairs nothing: for VT-x and SVM.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoRepair;

impl ExitRepair for NoRepair {}

/// What an exit needs that cannot be done while its data is borrowed.
enum Pending {
    Nothing,
    InternalError,
    Debug,
    WriteMsr(u32, u64),
    TripleFault,
    Reset,
    GaveUp(String),
}

impl Vcpu {
    /// Runs until `stop` is set or the processor cannot go on. Whenever it is
    /// kicked, `sampler` learns where it is.
    ///
    /// For a pause it returns only from a `KVM_RUN` that was interrupted: what
    /// a device answered to the access before is then in the registers, and no
    /// part of the processor's state is on its way.
    ///
    /// # Errors
    /// [`VcpuFailure`], with the registers.
    pub fn run(
        &mut self,
        buses: &Buses,
        stop: &Stop,
        sampler: &Sampler,
        repair: &mut dyn ExitRepair,
    ) -> Result<(), VcpuFailure> {
        let started = repair.start(&mut self.fd);
        self.repaired(started, || "its start failed".to_owned())?;
        while !stop.is_set() {
            let pending = match self.fd.run() {
                Ok(exit) => serve(exit, buses),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                    self.kicked(sampler);
                    // Looked at after the kick was acknowledged, so that none
                    // is lost.
                    if stop.is_wanted() {
                        return Ok(());
                    }
                    Pending::Nothing
                }
                Err(source) => {
                    let registers = self.registers();
                    return Err(VcpuFailure::Run {
                        vcpu: self.id,
                        source,
                        registers,
                    });
                }
            };
            self.settle(pending, repair)?;
        }
        Ok(())
    }

    /// Out of guest mode because somebody wants to know something: whether it
    /// is to stop, or where it is.
    #[cold]
    fn kicked(&mut self, sampler: &Sampler) {
        kick::acknowledge(self);
        if sampler.is_on()
            && let Ok(registers) = self.fd.get_regs()
        {
            sampler.count(registers.rip);
        }
    }

    fn settle(&mut self, pending: Pending, repair: &mut dyn ExitRepair) -> Result<(), VcpuFailure> {
        match pending {
            Pending::Nothing => Ok(()),
            Pending::TripleFault => {
                let registers = self.registers();
                Err(VcpuFailure::TripleFault {
                    vcpu: self.id,
                    registers,
                })
            }
            Pending::Reset => Err(VcpuFailure::Reset { vcpu: self.id }),
            Pending::GaveUp(reason) => self.repaired(Repair::Impossible(reason), String::new),
            Pending::InternalError => {
                let refusal = Refusal::of(&mut self.fd);
                let repaired = repair.internal_error(&mut self.fd);
                self.repaired(repaired, || refusal.to_string())
            }
            Pending::Debug => {
                let repaired = repair.debug(&mut self.fd);
                self.repaired(repaired, || "unexpected debug exit".to_owned())
            }
            Pending::WriteMsr(index, value) => {
                let repaired = repair.write_msr(&mut self.fd, index, value);
                self.repaired(repaired, || format!("unexpected write of MSR {index:#x}"))
            }
        }
    }

    fn repaired(
        &mut self,
        repaired: Repair,
        unknown: impl FnOnce() -> String,
    ) -> Result<(), VcpuFailure> {
        let reason = match repaired {
            Repair::Resume => return Ok(()),
            Repair::Fault => {
                fail_msr_access(&mut self.fd);
                return Ok(());
            }
            Repair::Unknown => unknown(),
            Repair::Impossible(reason) => reason,
        };
        let registers = self.registers();
        Err(VcpuFailure::GaveUp {
            vcpu: self.id,
            reason,
            registers,
        })
    }

    fn registers(&self) -> Registers {
        Registers(self.fd.get_regs().ok().map(Box::new))
    }
}

fn serve(exit: VcpuExit<'_>, buses: &Buses) -> Pending {
    match exit {
        VcpuExit::IoOut(port, data) => {
            buses.pio.write(u64::from(port), data);
        }
        VcpuExit::IoIn(port, data) => {
            buses.pio.read(u64::from(port), data);
        }
        VcpuExit::MmioRead(address, data) => {
            buses.mmio.read(address, data);
        }
        VcpuExit::MmioWrite(address, data) => {
            buses.mmio.write(address, data);
        }
        // HLT stays in KVM, which has the interrupt controllers; should it come
        // here, waiting is entering guest mode again.
        VcpuExit::Hlt | VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::SetTpr => {}
        VcpuExit::Shutdown => return Pending::TripleFault,
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN | KVM_SYSTEM_EVENT_RESET, _) => {
            return Pending::Reset;
        }
        VcpuExit::InternalError => return Pending::InternalError,
        VcpuExit::Debug(_) => return Pending::Debug,
        VcpuExit::X86Wrmsr(exit) => return Pending::WriteMsr(exit.index, exit.data),
        VcpuExit::FailEntry(reason, cpu) => {
            return Pending::GaveUp(format!(
                "the processor refuses guest mode, reason {reason:#x} on host CPU {cpu}"
            ));
        }
        VcpuExit::MemoryFault { gpa, .. } => {
            return Pending::GaveUp(format!("guest memory at {gpa:#x} is not accessible"));
        }
        other => return Pending::GaveUp(format!("unexpected exit {other:?}")),
    }
    Pending::Nothing
}

/// Has the access to an MSR that a processor has left guest mode for fail.
fn fail_msr_access(vcpu: &mut VcpuFd) {
    vcpu.get_kvm_run().__bindgen_anon_1.msr.error = 1;
}

/// What `KVM_EXIT_INTERNAL_ERROR` says (`Documentation/virt/kvm/api.rst`).
#[derive(Debug, Clone, Copy)]
pub struct Refusal {
    suberror: u32,
    /// A length, then as many bytes of the instruction.
    instruction: Option<[u8; 16]>,
}

impl Refusal {
    /// Of a processor that has left guest mode for this reason.
    pub fn of(vcpu: &mut VcpuFd) -> Self {
        const HAS_INSTRUCTION: u64 = 1;
        let run = vcpu.get_kvm_run();
        // SAFETY: the exit reason was KVM_EXIT_INTERNAL_ERROR, so that this
        // member of the union is the one that is filled; all are plain numbers,
        // for which any bits will do.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        let has_instruction = internal.ndata >= 3 && internal.data[0] & HAS_INSTRUCTION != 0;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&internal.data[1].to_le_bytes());
        bytes[8..].copy_from_slice(&internal.data[2].to_le_bytes());
        Self {
            suberror: internal.suberror,
            instruction: has_instruction.then_some(bytes),
        }
    }

    /// Whether it is about an instruction that was to be emulated.
    pub fn is_emulation(&self) -> bool {
        const EMULATION: u32 = 1;
        self.suberror == EMULATION
    }

    /// The instruction's bytes and some that follow it, if KVM tells them.
    pub fn bytes(&self) -> Option<&[u8]> {
        let (length, bytes) = self.instruction.as_ref()?.split_first()?;
        bytes.get(..usize::from(*length).min(bytes.len()))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_emulation() {
            return write!(f, "internal error {}", self.suberror);
        }
        f.write_str("it cannot emulate the instruction")?;
        for byte in self.bytes().unwrap_or_default() {
            write!(f, " {byte:02x}")?;
        }
        Ok(())
    }
}

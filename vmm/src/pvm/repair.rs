//! One processor's repairs: what is done at each exit that needs one.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, Msrs, kvm_guest_debug,
    kvm_msr_entry, kvm_regs, kvm_sregs,
};
use kvm_ioctls::{SyncReg, VcpuFd};

use super::atomic;
use super::counts::Counts;
use super::exception::{Done, Exception, fault};
use super::extended::ExtendedState;
use super::instruction::{self, Decoded, MAX_LENGTH, Source, Work};
use super::paging::{Access, PageTables, WalkError};
use super::registers::{put_exception, put_msr, put_regs, put_sregs, registers};
use super::syscall::{self, Entry, FRAME_SIZE, Frame, GATE_SIZE};
use super::timer::{self, BootTimer};
use super::xsave::Layout;
use crate::guest::Symbols;
use crate::memory::GuestMemory;
use crate::vcpu::{ExitRepair, Refusal, Repair, time_stamp_counter};

const CR0_MONITOR_COPROCESSOR: u64 = 1 << 1;
const CR0_TASK_SWITCHED: u64 = 1 << 3;
/// Exceptions of the x87 unit, in its status and control words.
const X87_EXCEPTIONS: u16 = 0x3f;
/// RFLAGS.RF, which every instruction that ends clears.
const RFLAGS_RESUME: u64 = 1 << 16;

/// DR7: breakpoint 0 on, exact; DR0 is an instruction's address.
const DR7_BREAKPOINT_0: u64 = 1 << 1 | 1 << 10;

/// The repairs of one processor.
#[derive(Debug)]
pub(super) struct PvmRepair {
    memory: GuestMemory,
    kernel: PathBuf,
    counts: Arc<Counts>,
    layout: Layout,
    entry: Entry,
    /// Where the breakpoint is: the first instruction of the guest's handler
    /// of page faults.
    handler: Option<u64>,
    /// Whether the processor makes the one step over that instruction.
    is_stepping: bool,
    /// Whether the timer is held back.
    is_booting: Arc<AtomicBool>,
    timer: BootTimer,
}

impl PvmRepair {
    pub(super) fn new(
        memory: GuestMemory,
        kernel: PathBuf,
        counts: Arc<Counts>,
        is_booting: Arc<AtomicBool>,
    ) -> Self {
        Self {
            memory,
            kernel,
            counts,
            layout: Layout::of_host(),
            entry: Entry::default(),
            handler: None,
            is_stepping: false,
            is_booting,
            timer: BootTimer::default(),
        }
    }

    /// Puts the breakpoint where the guest handles page faults now.
    fn follow_handler(
        &mut self,
        vcpu: &VcpuFd,
        sregs: &kvm_sregs,
    ) -> Result<(), kvm_ioctls::Error> {
        if self.entry.lstar == 0 {
            return Ok(());
        }
        let handler = self.read_handler(sregs);
        if handler.is_none() || handler == self.handler {
            return Ok(());
        }
        self.handler = handler;
        self.set_breakpoint(vcpu)
    }

    fn read_handler(&self, sregs: &kvm_sregs) -> Option<u64> {
        let mut gate = [0; GATE_SIZE];
        self.tables(sregs)
            .read(syscall::gate_address(sregs)?, &mut gate)
            .ok()?;
        syscall::handler(gate)
    }

    fn tables(&self, sregs: &kvm_sregs) -> PageTables<'_> {
        // Descriptor tables and interrupt frames are the supervisor's business,
        // which SMAP does not keep it from.
        PageTables::new(&self.memory, sregs, u64::MAX).as_supervisor()
    }

    fn set_breakpoint(&mut self, vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        self.is_stepping = false;
        let mut debug = kvm_guest_debug::default();
        if let Some(handler) = self.handler {
            debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
            debug.arch.debugreg[0] = handler;
            debug.arch.debugreg[7] = DR7_BREAKPOINT_0;
        }
        vcpu.set_guest_debug(&debug)
    }

    /// Lets the processor make one step without the breakpoint.
    fn step(&mut self, vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        self.is_stepping = true;
        let debug = kvm_guest_debug {
            control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP,
            ..kvm_guest_debug::default()
        };
        vcpu.set_guest_debug(&debug)
    }

    /// At the first instruction of the handler of page faults.
    fn page_fault(
        &mut self,
        vcpu: &mut VcpuFd,
        mut regs: kvm_regs,
        mut sregs: kvm_sregs,
    ) -> Result<(), kvm_ioctls::Error> {
        let tables = self.tables(&sregs);
        let mut bytes = [0; FRAME_SIZE];
        if tables.read(regs.rsp, &mut bytes).is_ok() {
            let frame = Frame::parse(&bytes);
            if frame.is_syscall(&self.entry, &regs) {
                self.counts.syscall();
                frame.resume(&self.entry, &mut regs, &mut sregs);
                put_regs(vcpu, regs);
                put_sregs(vcpu, &sregs);
                return Ok(());
            }
        }
        self.counts.page_fault();
        let mut bytes = [0; MAX_LENGTH];
        let count = tables.fetch(regs.rip, &mut bytes);
        match instruction::harmless(&bytes[..count], regs.rip, &sregs) {
            Some((length, clears)) => {
                regs.rip = regs.rip.wrapping_add(length);
                regs.rflags &= !(clears | RFLAGS_RESUME);
                put_regs(vcpu, regs);
                Ok(())
            }
            None => self.step(vcpu),
        }
    }

    /// Carries out what the emulator refused.
    fn carry_out(&self, work: Work, regs: &mut kvm_regs, sregs: &kvm_sregs, vcpu: &VcpuFd) -> Done {
        let tables = PageTables::new(&self.memory, sregs, regs.rflags);
        let extended = ExtendedState {
            memory: &self.memory,
            layout: &self.layout,
            vcpu,
            sregs,
        };
        match work {
            Work::SaveState(area) => extended.save(area, regs),
            Work::RestoreState(area) => extended.restore(area, regs),
            Work::ReadFeatures => extended.read_features(regs),
            Work::Breakpoint => Done::Completed(Some(Exception::BREAKPOINT)),
            Work::Wait => {
                let waits = CR0_MONITOR_COPROCESSOR | CR0_TASK_SWITCHED;
                if sregs.cr0 & waits == waits {
                    return Done::Faulted(Exception::NO_DEVICE);
                }
                match vcpu.get_fpu() {
                    Ok(fpu) if fpu.fsw & !fpu.fcw & X87_EXCEPTIONS != 0 => {
                        Done::Faulted(Exception::X87)
                    }
                    Ok(_) => Done::Completed(None),
                    Err(_) => Done::Not("the x87 state cannot be read"),
                }
            }
            Work::Popcnt {
                source,
                destination,
            } => {
                let value = match source {
                    Source::Value(value) => value,
                    Source::Memory(address, size) => {
                        let mut bytes = [0; 8];
                        let part = &mut bytes[..size.min(8)];
                        if let Err(error) = tables.read(address, part) {
                            return fault(error, address);
                        }
                        u64::from_le_bytes(bytes)
                    }
                };
                instruction::popcnt(value, destination, regs);
                Done::Completed(None)
            }
            Work::CompareExchange16 { address } => {
                if address & 15 != 0 {
                    return fault(WalkError::NotCanonical, address);
                }
                let place = match tables.translate(address, Access::Write) {
                    Ok(place) => place,
                    Err(error) => return fault(error, address),
                };
                let (old, new) = instruction::compare_exchange_operands(regs);
                match atomic::compare_exchange_16(&self.memory, place, old, new) {
                    Some(was) => {
                        instruction::compare_exchange_result(was, regs);
                        Done::Completed(None)
                    }
                    None => Done::Not("its operand is not in memory"),
                }
            }
        }
    }

    /// When the timer is to fire that the guest set to `wanted`.
    fn timer_deadline(&mut self, vcpu: &VcpuFd, wanted: u64) -> Option<u64> {
        // Was the filter taken away while this write was on its way?
        if !self.is_booting.load(Ordering::Relaxed) {
            return Some(wanted);
        }
        let khz = vcpu.get_tsc_khz().ok()?;
        let now = time_stamp_counter(vcpu).ok()?;
        Some(self.timer.deadline(wanted, now, khz))
    }

    fn refused(&mut self, vcpu: &mut VcpuFd) -> Repair {
        let (mut regs, sregs) = registers(vcpu);
        let mut bytes = [0; MAX_LENGTH];
        let tables = PageTables::new(&self.memory, &sregs, regs.rflags);
        let linear = regs
            .rip
            .wrapping_add(if sregs.cs.l == 1 { 0 } else { sregs.cs.base });
        let mut count = tables.fetch(linear, &mut bytes);
        let refusal = Refusal::of(vcpu);
        let seen = refusal.bytes().unwrap_or_default();
        if count == 0 {
            // Without paging, say: what KVM has seen.
            count = seen.len().min(MAX_LENGTH);
            bytes[..count].copy_from_slice(&seen[..count]);
        }
        let refused = instruction::decode(seen, &regs, &sregs).map_or(1, |seen| seen.length);
        if is_rewritten(seen, &bytes[..count], refused as usize) {
            // By another processor, which had an `int3` there meanwhile: this one comes
            // by again. KVM's #UD is taken back.
            return resumed(put_exception(vcpu, None), "forget an exception");
        }
        let bytes = &bytes[..count];
        let decoded = instruction::decode(bytes, &regs, &sregs);
        let Some(Decoded {
            length,
            work: Some(work),
        }) = decoded
        else {
            return Repair::Impossible(self.explain(bytes, &regs, &sregs, "is not repaired"));
        };
        let exception = match self.carry_out(work, &mut regs, &sregs, vcpu) {
            Done::Completed(trap) => {
                regs.rip = regs.rip.wrapping_add(length);
                regs.rflags &= !RFLAGS_RESUME;
                trap
            }
            Done::Faulted(fault) => Some(fault),
            Done::Not(why) => return Repair::Impossible(self.explain(bytes, &regs, &sregs, why)),
        };
        self.counts.instruction();
        let injected = put_exception(vcpu, exception);
        if let Some(address) = exception.and_then(|exception| exception.address) {
            let mut sregs = sregs;
            sregs.cr2 = address;
            put_sregs(vcpu, &sregs);
        }
        put_regs(vcpu, regs);
        match injected {
            Ok(()) => Repair::Resume,
            Err(error) => Repair::Impossible(format!("KVM does not take an exception: {error}")),
        }
    }

    /// Why the guest ends: the instruction, its bytes, where it is.
    fn explain(&self, bytes: &[u8], regs: &kvm_regs, sregs: &kvm_sregs, why: &str) -> String {
        let mut text = match instruction::text(bytes, regs.rip, sregs) {
            Some(name) => format!("this PVM host does not emulate `{name}`, which {why} (bytes"),
            None => "this PVM host met bytes that are no instruction (bytes".to_owned(),
        };
        for byte in bytes {
            // Writing to a string cannot fail.
            let _ = write!(text, " {byte:02x}");
        }
        let _ = write!(text, "; at {:#x}", regs.rip);
        if let Ok(symbols) = Symbols::of_kernel(&self.kernel) {
            let _ = write!(text, " in {}", symbols.resolve(regs.rip));
        }
        text.push(')');
        text
    }
}

impl ExitRepair for PvmRepair {
    fn start(&mut self, vcpu: &mut VcpuFd) -> Repair {
        vcpu.set_sync_valid_reg(SyncReg::Register);
        vcpu.set_sync_valid_reg(SyncReg::SystemRegister);
        vcpu.set_sync_valid_reg(SyncReg::VcpuEvents);
        // A processor that was restored has been set up before.
        let msrs = [syscall::MSR_STAR, syscall::MSR_LSTAR, syscall::MSR_FMASK];
        let entries = msrs.map(|index| kvm_msr_entry {
            index,
            ..kvm_msr_entry::default()
        });
        let Ok(mut list) = Msrs::from_entries(&entries) else {
            return Repair::Impossible("a list of MSRs is too long".to_owned());
        };
        let armed = vcpu.get_msrs(&mut list).and_then(|_| {
            for entry in list.as_slice() {
                if let Some(slot) = self.entry.slot(entry.index) {
                    *slot = entry.data;
                }
            }
            let sregs = vcpu.get_sregs()?;
            self.follow_handler(vcpu, &sregs)
        });
        resumed(armed, "set a breakpoint for its system calls")
    }

    fn internal_error(&mut self, vcpu: &mut VcpuFd) -> Repair {
        if !Refusal::of(vcpu).is_emulation() {
            return Repair::Unknown;
        }
        self.refused(vcpu)
    }

    fn debug(&mut self, vcpu: &mut VcpuFd) -> Repair {
        self.counts.debug_exit();
        // A boot ends with system calls, each of which comes by here.
        if !self.is_booting.load(Ordering::Relaxed)
            && let Some(deadline) = self.timer.release()
        {
            put_msr(vcpu, timer::MSR_TSC_DEADLINE, deadline);
        }
        let (regs, sregs) = registers(vcpu);
        if self.is_stepping {
            let set = self.set_breakpoint(vcpu);
            return resumed(set, "set a breakpoint for its system calls");
        }
        if self.handler != Some(regs.rip) {
            return Repair::Unknown;
        }
        let done = self
            .page_fault(vcpu, regs, sregs)
            .and_then(|()| self.follow_handler(vcpu, &sregs));
        resumed(done, "step over a breakpoint")
    }

    fn write_msr(&mut self, vcpu: &mut VcpuFd, index: u32, value: u64) -> Repair {
        if index == timer::MSR_TSC_DEADLINE {
            return match self.timer_deadline(vcpu, value) {
                Some(deadline) if put_msr(vcpu, index, deadline) => Repair::Resume,
                _ => Repair::Fault,
            };
        }
        let Some(slot) = self.entry.slot(index) else {
            return Repair::Unknown;
        };
        if !put_msr(vcpu, index, value) {
            return Repair::Fault;
        }
        *slot = value;
        let (_, sregs) = registers(vcpu);
        let followed = self.follow_handler(vcpu, &sregs);
        resumed(followed, "set a breakpoint for its system calls")
    }
}

/// Whether the instruction of so many bytes that KVM has `seen` is another one `now`.
fn is_rewritten(seen: &[u8], now: &[u8], length: usize) -> bool {
    match (seen.get(..length), now.get(..length)) {
        (Some(seen), Some(now)) => seen != now,
        _ => false,
    }
}

fn resumed(result: Result<(), kvm_ioctls::Error>, what: &str) -> Repair {
    match result {
        Ok(()) => Repair::Resume,
        Err(error) => Repair::Impossible(format!("KVM refuses to {what}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_refused_instruction_counts_as_rewritten() {
        // A jump label whose `int3` is gone again.
        assert!(is_rewritten(&[0xcc, 0x90, 0xe8], &[0x66, 0x90, 0xe8], 1));
        assert!(!is_rewritten(&[0xcc, 0x90, 0xe8], &[0xcc, 0x91, 0xe9], 1));
        // KVM has not looked, or there is nothing to look at.
        assert!(!is_rewritten(&[], &[0x66], 1));
        assert!(!is_rewritten(&[0xcc], &[], 1));
    }
}

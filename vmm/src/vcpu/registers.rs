//! Registers of the first processor at the kernel's entry point, by Linux's
//! 64-bit boot protocol: long mode, flat segments, RSI at the zero page.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_xcrs};
use kvm_ioctls::VcpuFd;

use crate::boot::{EntryPoint, long_mode};
use crate::kvm::{KvmError, refused};
use crate::memory::layout;

/// The bit of RFLAGS that is always set; interrupts are off.
const RFLAGS_RESERVED: u64 = 1 << 1;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Range registers on, and all memory write-back.
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

/// Offset of a local vector table register in the local APIC's page, and its
/// delivery mode (Intel SDM volume 3, 11.5.1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVER_NMI: u32 = 4 << 8;
const DELIVER_EXTERNAL: u32 = 7 << 8;

/// Puts the processor at the entry point in 64-bit mode.
pub(super) fn enter_long_mode(vcpu: &VcpuFd, entry: EntryPoint) -> Result<(), KvmError> {
    let mut sregs = vcpu
        .get_sregs()
        .map_err(refused("read a virtual processor's registers"))?;
    long_mode_sregs(&mut sregs);
    vcpu.set_sregs(&sregs)
        .map_err(refused("set a virtual processor's system registers"))?;
    vcpu.set_regs(&entry_regs(entry))
        .map_err(refused("set a virtual processor's registers"))
}

/// Enables `features` in XCR0 from the start, for QEMU's emulation of SVM,
/// which does not intercept XSETBV: KVM never learns what the guest enables
/// there, answers CPUID leaf 0xD for what it was before, and puts that back
/// whenever it enters the guest. Linux notices, complains with a backtrace and
/// goes on without XSAVE. What KVM knows from the start stays right.
pub(super) fn enable_xsave_features(vcpu: &VcpuFd, features: u64) -> Result<(), KvmError> {
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..kvm_xcrs::default()
    };
    xcrs.xcrs[0].xcr = 0;
    xcrs.xcrs[0].value = features;
    vcpu.set_xcrs(&xcrs)
        .map_err(refused("enable a virtual processor's XSAVE features"))
}

/// Model-specific registers that firmware would set. The x87 and SSE state is
/// right as KVM creates it.
pub(super) fn set_msrs(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    };
    let entries = [
        entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK),
        entry(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
    ];
    // A KVM that does not know one of these runs a guest without it.
    let Ok(msrs) = Msrs::from_entries(&entries) else {
        return Ok(());
    };
    vcpu.set_msrs(&msrs)
        .map_err(refused("set a virtual processor's MSRs"))
        .map(|_| ())
}

/// Connects the local APIC's two pins as the MP table says: the first to the
/// 8259s, the second to NMI.
pub(super) fn connect_lint_pins(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let mut lapic = vcpu.get_lapic().map_err(refused("read a local APIC"))?;
    for (offset, mode) in [(LVT_LINT0, DELIVER_EXTERNAL), (LVT_LINT1, DELIVER_NMI)] {
        for (register, byte) in lapic.regs[offset..offset + 4]
            .iter_mut()
            .zip(mode.to_le_bytes())
        {
            *register = byte as _;
        }
    }
    vcpu.set_lapic(&lapic).map_err(refused("set a local APIC"))
}

fn entry_regs(entry: EntryPoint) -> kvm_regs {
    kvm_regs {
        rip: entry.0.0,
        rsi: layout::ZERO_PAGE,
        rflags: RFLAGS_RESERVED,
        ..kvm_regs::default()
    }
}

fn long_mode_sregs(sregs: &mut kvm_sregs) {
    long_mode::enable(sregs, layout::PML4);
    (sregs.gdt.base, sregs.gdt.limit) = (layout::GDT, long_mode::GDT_LIMIT);
    (sregs.idt.base, sregs.idt.limit) = (layout::IDT, long_mode::IDT_LIMIT);
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    #[test]
    fn processor_starts_in_long_mode_at_the_entry() {
        let mut sregs = kvm_sregs::default();
        long_mode_sregs(&mut sregs);
        assert_eq!((sregs.cs.l, sregs.cs.db), (1, 0));
        assert_eq!((sregs.cs.selector, sregs.ss.selector), (0x10, 0x18));
        assert_eq!(sregs.efer, 0x500);
        let regs = entry_regs(EntryPoint(GuestAddress(0x100_0000)));
        assert_eq!((regs.rip, regs.rsi, regs.rflags), (0x100_0000, 0x7000, 2));
    }
}

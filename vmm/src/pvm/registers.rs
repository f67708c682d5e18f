//! A processor's registers at an exit: taken from the page that KVM shares, and put
//! there for the next entry; and what it has to be told beside them.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events};
use kvm_ioctls::{SyncReg, VcpuFd};

use super::exception::Exception;

/// The registers as they were at the exit.
pub(super) fn registers(vcpu: &VcpuFd) -> (kvm_regs, kvm_sregs) {
    let sync = vcpu.sync_regs();
    let (regs, mut sregs) = (sync.regs, sync.sregs);
    // KVM sets a bit for an interrupt on its way and clears none in the shared
    // page: it would come again, and again, with every write of the others.
    sregs.interrupt_bitmap = [0; 4];
    let interrupt = sync.events.interrupt;
    if interrupt.injected != 0 && interrupt.soft == 0 {
        sregs.interrupt_bitmap[usize::from(interrupt.nr / 64)] |= 1 << (interrupt.nr % 64);
    }
    (regs, sregs)
}

/// Has KVM take these at the next entry.
pub(super) fn put_regs(vcpu: &mut VcpuFd, regs: kvm_regs) {
    vcpu.sync_regs_mut().regs = regs;
    vcpu.set_sync_dirty_reg(SyncReg::Register);
}

pub(super) fn put_sregs(vcpu: &mut VcpuFd, sregs: &kvm_sregs) {
    vcpu.sync_regs_mut().sregs = *sregs;
    vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
}

/// Writes an MSR for the guest; says whether KVM takes the value.
pub(super) fn put_msr(vcpu: &VcpuFd, index: u32, data: u64) -> bool {
    let entry = kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    };
    let written = Msrs::from_entries(&[entry])
        .ok()
        .and_then(|list| vcpu.set_msrs(&list).ok());
    written == Some(1)
}

/// Has the guest take `exception`, in place of the #UD that KVM has for an
/// instruction that it refuses.
pub(super) fn put_exception(
    vcpu: &VcpuFd,
    exception: Option<Exception>,
) -> Result<(), kvm_ioctls::Error> {
    let mut events: kvm_vcpu_events = vcpu.get_vcpu_events()?;
    events.exception.pending = 0;
    events.exception.injected = u8::from(exception.is_some());
    if let Some(exception) = exception {
        events.exception.nr = exception.vector;
        events.exception.has_error_code = u8::from(exception.error_code.is_some());
        events.exception.error_code = exception.error_code.unwrap_or(0);
    }
    // What a `sti` before it held back may come now.
    events.interrupt.shadow = 0;
    vcpu.set_vcpu_events(&events)
}

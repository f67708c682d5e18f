//! The few of KVM's calls that keep a virtual machine without running it.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

// Of linux/kvm.h: type 0xae, and for SREGS the direction and the size.
const KVM_CREATE_VM: libc::c_ulong = 0xae01;
const KVM_CREATE_VCPU: libc::c_ulong = 0xae41;
const KVM_CREATE_IRQCHIP: libc::c_ulong = 0xae60;
const KVM_GET_SREGS: libc::c_ulong = 0x8138_ae83;
const KVM_SET_SREGS: libc::c_ulong = 0x4138_ae84;

/// `struct kvm_sregs` of asm/kvm.h: its size, and where in it `apic_base` is,
/// behind eight segments (24 bytes), two tables (16) and six registers (8).
const SREGS_WORDS: usize = 0x138 / 8;
const APIC_BASE: usize = (8 * 24 + 2 * 16 + 6 * 8) / 8;
/// Bit of `IA32_APIC_BASE` that switches the APIC on.
const APIC_ENABLE: u64 = 1 << 11;

/// A virtual machine with a processor that never runs.
#[derive(Debug)]
pub(super) struct Held {
    _machine: OwnedFd,
    _processor: OwnedFd,
}

impl Held {
    /// One whose APIC is disabled in both ways: by hardware, and by software as
    /// at every reset.
    pub(super) fn with_apic_off(kvm: &OwnedFd) -> Result<Self, Errno> {
        let machine = created(kvm, KVM_CREATE_VM)?;
        call(&machine, KVM_CREATE_IRQCHIP, 0)?;
        let processor = created(&machine, KVM_CREATE_VCPU)?;
        let mut registers = [0u64; SREGS_WORDS];
        call(&processor, KVM_GET_SREGS, registers.as_mut_ptr() as usize)?;
        registers[APIC_BASE] &= !APIC_ENABLE;
        call(&processor, KVM_SET_SREGS, registers.as_mut_ptr() as usize)?;
        Ok(Self {
            _machine: machine,
            _processor: processor,
        })
    }

    /// One without interrupt controllers in the kernel.
    pub(super) fn without_apic(kvm: &OwnedFd) -> Result<Self, Errno> {
        let machine = created(kvm, KVM_CREATE_VM)?;
        let processor = created(&machine, KVM_CREATE_VCPU)?;
        Ok(Self {
            _machine: machine,
            _processor: processor,
        })
    }
}

/// A call that returns a new descriptor.
fn created(on: &OwnedFd, request: libc::c_ulong) -> Result<OwnedFd, Errno> {
    let fd = call(on, request, 0)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One of the calls above, with a number or the address of `struct kvm_sregs`.
fn call(on: &OwnedFd, request: libc::c_ulong, argument: usize) -> Result<i32, Errno> {
    // SAFETY: the calls that take an address are given that of an array as
    // large as the size in their number says, which outlives the call and which
    // nobody else uses; to the others it is a number.
    let result = unsafe { libc::ioctl(on.as_raw_fd(), request, argument) };
    if result < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    Ok(result)
}

//! A virtual processor's state: everything that makes it go on, elsewhere,
//! where it stopped.

mod msrs;
mod restore;
mod save;

use kvm_bindings::{
    kvm_debugregs, kvm_fpu, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use minicbor::{Decode, Encode};
use thiserror::Error;

use crate::kvm::plain::{Bytes, BytesList};
use crate::kvm::{KvmError, refused};

/// A virtual processor that does not run. Its CPUID is that of its machine
/// with its number in it, so it is not here.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VcpuState {
    /// Its number.
    #[n(0)]
    pub id: u8,
    /// Whether it runs, halts, or waits to be started.
    #[n(1)]
    pub mp_state: Bytes<kvm_mp_state>,
    /// General registers.
    #[n(2)]
    pub regs: Bytes<kvm_regs>,
    /// Segments, control registers, EFER, the base of the local APIC.
    #[n(3)]
    pub sregs: Bytes<kvm_sregs>,
    /// The extended state in the processor's standard format, without the
    /// zeroes at its end; on a host without XSAVE absent.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub xsave: Option<Vec<u8>>,
    /// x87 and SSE registers of a host without XSAVE.
    #[n(5)]
    pub fpu: Option<Bytes<kvm_fpu>>,
    /// XCR0; absent on a host without XSAVE.
    #[n(6)]
    pub xcrs: Option<Bytes<kvm_xcrs>>,
    /// Debug registers.
    #[n(7)]
    pub debug_regs: Bytes<kvm_debugregs>,
    /// Registers of the local APIC.
    #[n(8)]
    pub lapic: Bytes<kvm_lapic_state>,
    /// Model-specific registers, in the order in which they are written back.
    #[n(9)]
    pub msrs: BytesList<kvm_msr_entry>,
    /// Exceptions, interrupts and NMIs that are on their way.
    #[n(10)]
    pub events: Bytes<kvm_vcpu_events>,
    /// Frequency of its time stamp counter in kHz, where KVM knew it.
    #[n(11)]
    pub tsc_khz: Option<u32>,
}

/// Why a processor's state cannot be saved or put back.
#[derive(Debug, Error)]
pub enum VcpuStateError {
    /// KVM refused a part.
    #[error("KVM refuses to {what} of virtual processor {vcpu}: {source}")]
    Refused {
        /// Its number.
        vcpu: u8,
        /// What was tried, with which part.
        what: &'static str,
        /// What the system said.
        source: kvm_ioctls::Error,
    },
    /// KVM refused to set an MSR.
    #[error(
        "KVM refuses to set MSR {index:#x} of virtual processor {vcpu} to {value:#x}: this host \
         is too unlike the one that the snapshot was taken on; restore it on one like that"
    )]
    Msr {
        /// Its number.
        vcpu: u8,
        /// Which register.
        index: u32,
        /// What it was.
        value: u64,
    },
    /// The time stamp counter would run at another speed.
    #[error(
        "virtual processor {vcpu} has a time stamp counter of {saved} kHz, this host one of \
         {host} kHz, and its KVM cannot scale it: restore the snapshot on a host like that it \
         was taken on, or force it if the guest reads its time from kvm-clock"
    )]
    TscFrequency {
        /// Its number.
        vcpu: u8,
        /// What it was.
        saved: u32,
        /// What the host has.
        host: u32,
    },
    /// The host needs a state that the snapshot has not, or the other way.
    #[error(
        "the snapshot has {what} for virtual processor {vcpu}, which this host's KVM cannot take: \
         restore it on a host like that it was taken on"
    )]
    Unsupported {
        /// Its number.
        vcpu: u8,
        /// What it is.
        what: &'static str,
    },
    /// The guest runs a guest.
    #[error(
        "virtual processor {vcpu} runs a virtual machine of its own, which cannot be saved: \
         stop the machines inside the guest first"
    )]
    Nested {
        /// Its number.
        vcpu: u8,
    },
}

/// What this host's KVM can save and take back.
#[derive(Debug, Clone)]
pub struct StateSupport {
    /// Bytes of the extended state; 0 where KVM has none.
    pub(super) xsave_size: usize,
    pub(super) has_xcrs: bool,
    pub(super) has_nested: bool,
    pub(super) can_scale_tsc: bool,
}

impl StateSupport {
    /// Asks the host.
    pub fn new(vm: &VmFd) -> Self {
        let xsave_size = match usize::try_from(vm.check_extension_int(Cap::Xsave2)) {
            Ok(size) if size >= XSAVE_SIZE => size,
            _ if vm.check_extension(Cap::Xsave) => XSAVE_SIZE,
            _ => 0,
        };
        Self {
            xsave_size,
            has_xcrs: vm.check_extension(Cap::Xcrs),
            has_nested: vm.check_extension(Cap::NestedState),
            can_scale_tsc: vm.check_extension(Cap::TscControl),
        }
    }
}

/// Bytes of the extended state in KVM's first interface for it.
const XSAVE_SIZE: usize = 4096;

/// The MSRs that this host's KVM can save: asked only when it is needed.
///
/// # Errors
/// [`KvmError::Request`].
pub fn msrs_to_save(kvm: &Kvm) -> Result<Vec<u32>, KvmError> {
    let list = kvm
        .get_msr_index_list()
        .map_err(refused("list the MSRs that it can save"))?;
    Ok(msrs::select(list.as_slice()))
}

#[cfg(test)]
pub(crate) mod tests;

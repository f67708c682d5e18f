//! Reads a processor's state out of KVM.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, Xsave, kvm_cpuid_entry2, kvm_msr_entry, kvm_xsave,
    kvm_xsave2,
};
use kvm_ioctls::{KvmNestedStateBuffer, VcpuFd};
use vmm_sys_util::fam::FamStruct;

use super::{StateSupport, VcpuState, VcpuStateError, msrs};
use crate::kvm::plain::{Bytes, BytesList};
use crate::vcpu::Vcpu;

impl Vcpu {
    /// Its state. It must not be running, and must have been stopped by a
    /// `KVM_RUN` that returned `EINTR`, so that no instruction is half done.
    /// `msrs` is what [`msrs_to_save`](super::msrs_to_save) said.
    ///
    /// # Errors
    /// [`VcpuStateError`].
    pub fn save(&self, support: &StateSupport, msrs: &[u32]) -> Result<VcpuState, VcpuStateError> {
        let refused = |what| {
            move |source| VcpuStateError::Refused {
                vcpu: self.id,
                what,
                source,
            }
        };
        let fd = &self.fd;
        if support.has_nested && runs_a_machine(fd).map_err(refused("read the nested state"))? {
            return Err(VcpuStateError::Nested { vcpu: self.id });
        }
        // First: it makes KVM take in INIT and SIPI, which changes the rest.
        let mp_state = fd.get_mp_state().map_err(refused("read the run state"))?;
        let regs = fd.get_regs().map_err(refused("read the registers"))?;
        let sregs = fd
            .get_sregs()
            .map_err(refused("read the system registers"))?;
        let (xsave, fpu) = if support.xsave_size == 0 {
            let fpu = fd.get_fpu().map_err(refused("read the FPU's registers"))?;
            (None, Some(Bytes(fpu)))
        } else {
            let xsave = read_xsave(fd, support.xsave_size);
            (
                Some(xsave.map_err(refused("read the extended state"))?),
                None,
            )
        };
        let xcrs = if support.has_xcrs {
            let xcrs = fd.get_xcrs().map_err(refused("read XCR0"))?;
            Some(Bytes(xcrs))
        } else {
            None
        };
        let debug_regs = fd
            .get_debug_regs()
            .map_err(refused("read the debug registers"))?;
        let lapic = fd.get_lapic().map_err(refused("read the local APIC"))?;
        let msrs = read_msrs(fd, msrs).map_err(refused("read the MSRs"))?;
        // Last: reading the others may have queued something.
        let events = fd
            .get_vcpu_events()
            .map_err(refused("read the pending events"))?;
        Ok(VcpuState {
            id: self.id,
            mp_state: Bytes(mp_state),
            regs: Bytes(regs),
            sregs: Bytes(sregs),
            xsave,
            fpu,
            xcrs,
            debug_regs: Bytes(debug_regs),
            lapic: Bytes(lapic),
            msrs: BytesList(msrs),
            events: Bytes(events),
            tsc_khz: self.tsc_khz(),
        })
    }

    /// The CPUID leaves that it has, as the guest reads them.
    ///
    /// # Errors
    /// [`VcpuStateError::Refused`].
    pub fn cpuid(&self) -> Result<Vec<kvm_cpuid_entry2>, VcpuStateError> {
        let leaves: CpuId = self
            .fd
            .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
            .map_err(|source| VcpuStateError::Refused {
                vcpu: self.id,
                what: "read the CPUID leaves",
                source,
            })?;
        Ok(leaves.as_slice().to_vec())
    }
}

/// Whether the guest uses the processor's virtualization itself.
fn runs_a_machine(fd: &VcpuFd) -> Result<bool, kvm_ioctls::Error> {
    const GUEST_MODE_OR_RUN_PENDING: u16 = 0b11;
    /// `KVM_STATE_NESTED_FORMAT_VMX`.
    const FORMAT_VMX: u16 = 0;
    const NO_VMXON: u64 = u64::MAX;
    let mut state = KvmNestedStateBuffer::empty();
    fd.nested_state(&mut state)?;
    // SAFETY: the format says which member KVM has filled; all are integers.
    let has_vmxon = state.format == FORMAT_VMX && unsafe { state.hdr.vmx.vmxon_pa } != NO_VMXON;
    // A processor without nested virtualization says nothing but a header of
    // zeroes, whose size is that of a header.
    let says_something = state.size as usize > size_of::<kvm_bindings::kvm_nested_state>();
    Ok(state.flags & GUEST_MODE_OR_RUN_PENDING != 0 || has_vmxon && says_something)
}

/// The extended state without the zeroes at its end.
fn read_xsave(fd: &VcpuFd, size: usize) -> Result<Vec<u8>, kvm_ioctls::Error> {
    let legacy = size_of::<kvm_xsave>();
    let words = size.saturating_sub(legacy);
    let entries = words.div_ceil(size_of::<<kvm_xsave2 as FamStruct>::Entry>());
    let mut bytes = Vec::with_capacity(size);
    let mut push = |words: &[u32]| bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    if size > legacy {
        let mut xsave = Xsave::new(entries).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
        // SAFETY: there is room for as many bytes as KVM_CAP_XSAVE2 says, and
        // this program never asks for more features (arch_prctl).
        unsafe { fd.get_xsave2(&mut xsave)? };
        push(&xsave.as_fam_struct_ref().xsave.region);
        push(xsave.as_slice());
    } else {
        push(&fd.get_xsave()?.region);
    }
    bytes.truncate(size.max(legacy));
    let used = bytes
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |at| at + 1);
    bytes.truncate(used);
    Ok(bytes)
}

/// The MSRs that the host lets us read. Those of the list that this processor
/// has not, by its CPUID or by its host's, are left out.
fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, kvm_ioctls::Error> {
    let mut found = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let asked = &rest[..rest.len().min(msrs::AT_ONCE)];
        let entries: Vec<kvm_msr_entry> = asked
            .iter()
            .map(|&index| kvm_msr_entry {
                index,
                ..kvm_msr_entry::default()
            })
            .collect();
        let mut list =
            Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        // It stops at the first that it refuses.
        let read = fd.get_msrs(&mut list)?;
        let values = list.as_slice().iter().take(read);
        found.extend(values.filter(|entry| !msrs::is_initial(entry.index, entry.data)));
        let refused = usize::from(read < asked.len());
        rest = rest.get(read + refused..).unwrap_or_default();
    }
    Ok(found)
}

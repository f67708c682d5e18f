//! Puts a saved state into a new processor.

use kvm_bindings::{CpuId, Msrs, Xsave, kvm_msr_entry, kvm_xsave, kvm_xsave2};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::fam::FamStruct;

use super::{StateSupport, VcpuState, VcpuStateError, msrs};
use crate::vcpu::{Vcpu, cpuid};

/// How far apart, in parts of a million, the frequencies of two time stamp
/// counters may be that are taken for the same: what NTP can make up for.
const TSC_TOLERANCE_PPM: u64 = 250;

impl Vcpu {
    /// A new processor of `vm` in this state. `cpuid` are the leaves of its
    /// machine, which get its number. With `force`, another frequency of the
    /// time stamp counter is accepted.
    ///
    /// The machine's interrupt controllers must be there, and its memory, to
    /// which KVM's clock writes.
    ///
    /// # Errors
    /// [`VcpuStateError`], which names the part that KVM refused.
    pub fn restore(
        vm: &VmFd,
        state: &VcpuState,
        cpuid: &mut CpuId,
        support: &StateSupport,
        force: bool,
    ) -> Result<Self, VcpuStateError> {
        let id = state.id;
        let refused = |what| {
            move |source| VcpuStateError::Refused {
                vcpu: id,
                what,
                source,
            }
        };
        let fd = vm
            .create_vcpu(u64::from(id))
            .map_err(refused("create the processor"))?;
        // CPUID first: it decides which of the rest there is.
        cpuid::set_apic_id(cpuid, id);
        fd.set_cpuid2(cpuid)
            .map_err(refused("set the CPUID leaves"))?;
        restore_tsc_frequency(&fd, state, support, force)?;
        fd.set_mp_state(state.mp_state.0)
            .map_err(refused("set the run state"))?;
        fd.set_regs(&state.regs.0)
            .map_err(refused("set the registers"))?;
        // The base and mode of the local APIC are in here: before its registers.
        fd.set_sregs(&state.sregs.0)
            .map_err(refused("set the system registers"))?;
        restore_fpu(&fd, state, support)?;
        fd.set_debug_regs(&state.debug_regs.0)
            .map_err(refused("set the debug registers"))?;
        // Before the MSRs: the deadline of its timer is one of them.
        fd.set_lapic(&state.lapic.0)
            .map_err(refused("set the local APIC"))?;
        restore_msrs(&fd, state)?;
        // Last: setting registers drops what is pending.
        fd.set_vcpu_events(&state.events.0)
            .map_err(refused("set the pending events"))?;
        Ok(Self { fd, id })
    }
}

fn restore_tsc_frequency(
    fd: &VcpuFd,
    state: &VcpuState,
    support: &StateSupport,
    force: bool,
) -> Result<(), VcpuStateError> {
    let (Some(saved), Ok(host)) = (state.tsc_khz, fd.get_tsc_khz()) else {
        return Ok(());
    };
    if u64::from(saved.abs_diff(host)) * 1_000_000 <= u64::from(saved) * TSC_TOLERANCE_PPM {
        return Ok(());
    }
    if support.can_scale_tsc && fd.set_tsc_khz(saved).is_ok() || force {
        return Ok(());
    }
    Err(VcpuStateError::TscFrequency {
        vcpu: state.id,
        saved,
        host,
    })
}

fn restore_fpu(
    fd: &VcpuFd,
    state: &VcpuState,
    support: &StateSupport,
) -> Result<(), VcpuStateError> {
    let vcpu = state.id;
    let refused = |what| move |source| VcpuStateError::Refused { vcpu, what, source };
    let unsupported = |what| VcpuStateError::Unsupported { vcpu, what };
    // XCR0 first: newer kernels check the extended state against it.
    match &state.xcrs {
        Some(xcrs) if support.has_xcrs => fd.set_xcrs(&xcrs.0).map_err(refused("set XCR0"))?,
        Some(_) => return Err(unsupported("XCR0")),
        None => {}
    }
    if let Some(xsave) = &state.xsave {
        if xsave.len() > support.xsave_size {
            return Err(unsupported("extended state (AVX and later)"));
        }
        write_xsave(fd, xsave, support.xsave_size).map_err(refused("set the extended state"))?;
    }
    if let Some(fpu) = &state.fpu {
        fd.set_fpu(&fpu.0)
            .map_err(refused("set the FPU's registers"))?;
    }
    Ok(())
}

/// `bytes`, and zeroes up to `size`.
fn write_xsave(fd: &VcpuFd, bytes: &[u8], size: usize) -> Result<(), kvm_ioctls::Error> {
    let legacy = size_of::<kvm_xsave>();
    let beyond = size.saturating_sub(legacy);
    let entries = beyond.div_ceil(size_of::<<kvm_xsave2 as FamStruct>::Entry>());
    let mut xsave = Xsave::new(entries).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
    let (first, second) = bytes.split_at(bytes.len().min(legacy));
    // SAFETY: only the content of the region is changed, not the length.
    let fixed = unsafe { &mut xsave.as_mut_fam_struct().xsave.region };
    put_words(fixed, first);
    put_words(xsave.as_mut_slice(), second);
    // SAFETY: there are as many bytes as KVM_CAP_XSAVE2 says that it reads, and
    // this program never asks for more features (arch_prctl).
    unsafe { fd.set_xsave2(&xsave) }
}

/// Little-endian words of `bytes`, the last padded with zeroes.
fn put_words(words: &mut [u32], bytes: &[u8]) {
    for (word, bytes) in words.iter_mut().zip(bytes.chunks(4)) {
        let mut padded = [0; 4];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = u32::from_le_bytes(padded);
    }
}

fn restore_msrs(fd: &VcpuFd, state: &VcpuState) -> Result<(), VcpuStateError> {
    let vcpu = state.id;
    let refused = |source| VcpuStateError::Refused {
        vcpu,
        what: "set the MSRs",
        source,
    };
    let list = |entries: &[kvm_msr_entry]| {
        Msrs::from_entries(entries).map_err(|_| refused(kvm_ioctls::Error::new(libc::E2BIG)))
    };
    let mut rest = state.msrs.0.as_slice();
    while !rest.is_empty() {
        // It stops at the first that it refuses.
        let given = &rest[..rest.len().min(msrs::AT_ONCE)];
        let written = fd.set_msrs(&list(given)?).map_err(refused)?;
        let Some(stopped) = given.get(written) else {
            rest = rest.get(given.len()..).unwrap_or_default();
            continue;
        };
        // Some can only be read; no harm if they are as they should be.
        let mut now = list(&[kvm_msr_entry {
            index: stopped.index,
            ..kvm_msr_entry::default()
        }])?;
        let is_read = fd.get_msrs(&mut now).is_ok_and(|count| count == 1);
        let is_same = now.as_slice().first().map(|now| now.data) == Some(stopped.data);
        if !(is_read && is_same) {
            return Err(VcpuStateError::Msr {
                vcpu,
                index: stopped.index,
                value: stopped.data,
            });
        }
        rest = rest.get(written + 1..).unwrap_or_default();
    }
    Ok(())
}

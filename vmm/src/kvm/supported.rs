//! The CPUID leaves that KVM supports, read without an allocation: the list
//! that kvm-ioctls makes for them is put together entry by entry, which takes
//! twice as long as KVM does, and every restore needs it.

use std::ffi::c_ulong;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_cpuid2};
use kvm_ioctls::Kvm;
use vmm_sys_util::ioctl::{_IOC_READ, _IOC_WRITE, ioctl_expr, ioctl_with_mut_ref};

use super::{KvmError, refused};

/// `KVM_GET_SUPPORTED_CPUID`.
const REQUEST: c_ulong = ioctl_expr(
    _IOC_READ | _IOC_WRITE,
    kvm_bindings::KVMIO,
    0x05,
    size_of::<kvm_cpuid2>() as u32,
);

/// Room for the leaves: a `struct kvm_cpuid2` with its entries.
#[repr(C)]
#[derive(Debug)]
pub struct SupportedLeaves {
    count: u32,
    padding: u32,
    entries: [kvm_cpuid_entry2; KVM_MAX_CPUID_ENTRIES],
}

impl Default for SupportedLeaves {
    fn default() -> Self {
        Self {
            count: 0,
            padding: 0,
            entries: [kvm_cpuid_entry2::default(); KVM_MAX_CPUID_ENTRIES],
        }
    }
}

impl SupportedLeaves {
    /// Those of this host.
    ///
    /// # Errors
    /// [`KvmError::Request`].
    pub fn read(&mut self, kvm: &Kvm) -> Result<&[kvm_cpuid_entry2], KvmError> {
        self.count = KVM_MAX_CPUID_ENTRIES as u32;
        // SAFETY: the structure is laid out as KVM's, and has room for as many
        // entries as it says, of which any bits are a value.
        if unsafe { ioctl_with_mut_ref(kvm, REQUEST, self) } < 0 {
            let error = kvm_ioctls::Error::last();
            return Err(refused("list the supported CPUID leaves")(error));
        }
        let count = (self.count as usize).min(self.entries.len());
        Ok(&self.entries[..count])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_the_ones_that_the_library_reads() {
        // Nothing to ask where there is no KVM.
        let Ok(kvm) = Kvm::new() else { return };
        let expected = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        let mut leaves = SupportedLeaves::default();
        let functions = |entries: &[kvm_cpuid_entry2]| -> Vec<_> {
            entries.iter().map(|e| (e.function, e.index)).collect()
        };
        assert_eq!(
            functions(leaves.read(&kvm).unwrap()),
            functions(expected.as_slice())
        );
    }
}

//! CPUID of a guest on a PVM host: without what the emulator refuses, as far as
//! KVM lets us.

use kvm_bindings::CpuId;

/// The highest basic leaf. KVM puts features of the host into leaves 7 and 0xD
/// whatever it is told. Linux looks at neither when they are not announced, and
/// then saves the x87 and SSE state with FXSAVE, which is emulated; XSAVE is
/// not.
const HIGHEST_LEAF: u32 = 6;
/// First leaf of the hypervisor range.
const HYPERVISOR: u32 = 0x4000_0000;

/// Leaf 1, ECX: PCLMULQDQ, SSSE3, FMA, CMPXCHG16B, SSE4.1, SSE4.2, MOVBE,
/// POPCNT, AES, XSAVE, OSXSAVE, AVX, F16C, RDRAND. A kernel hashes, sums and
/// encrypts with some of them, between two instructions of its own that the
/// emulator refuses.
const REFUSED_FEATURES: u32 = 1 << 1
    | 1 << 9
    | 1 << 12
    | 1 << 13
    | 1 << 19
    | 1 << 20
    | 1 << 22
    | 1 << 23
    | 1 << 25
    | 1 << 26
    | 1 << 27
    | 1 << 28
    | 1 << 29
    | 1 << 30;

/// Takes from prepared leaves what a guest must not use.
pub fn restrict(cpuid: &mut CpuId) {
    cpuid.retain(|entry| entry.function <= HIGHEST_LEAF || entry.function >= HYPERVISOR);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0 => entry.eax = entry.eax.min(HIGHEST_LEAF),
            1 => entry.ecx &= !REFUSED_FEATURES,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    #[test]
    fn the_leaves_end_before_xsave() {
        let leaf = |function, eax, ecx| kvm_cpuid_entry2 {
            function,
            eax,
            ecx,
            ..kvm_cpuid_entry2::default()
        };
        let mut cpuid = CpuId::from_entries(&[
            leaf(0, 0x1f, 0),
            leaf(1, 0, u32::MAX),
            leaf(7, 0, 0),
            leaf(0xd, 0, 0),
            leaf(0x4000_0000, 0, 0),
            leaf(0x8000_0001, 0, 0),
        ])
        .unwrap();
        restrict(&mut cpuid);
        let functions: Vec<_> = cpuid.as_slice().iter().map(|e| e.function).collect();
        assert_eq!(functions, [0, 1, 0x4000_0000, 0x8000_0001]);
        assert_eq!(cpuid.as_slice()[0].eax, 6);
        assert_eq!(cpuid.as_slice()[1].ecx & 1 << 26, 0);
        assert_ne!(cpuid.as_slice()[1].ecx & 1 << 31, 0);
    }
}

//! CPUID of a guest on a PVM host: without what the emulator refuses, as far as
//! KVM lets us.

use kvm_bindings::CpuId;

/// The highest basic leaf: the one of XSAVE. KVM puts features of the host into
/// leaves 1, 7 and 0xD whatever it is told.
const HIGHEST_LEAF: u32 = XSAVE;
/// Extended state: sizes, and forms of XSAVE.
const XSAVE: u32 = 0xd;
/// Features that came later than leaf 1.
const MORE_FEATURES: u32 = 7;
/// Leaf 7, EBX: AVX2, ERMS, AVX-512 (F, DQ, IFMA, CD, BW, VL). AVX and AVX-512 are
/// programs' state, which a kernel only has to know of; copying by ERMS, and
/// FSRM in EDX, is one instruction where others are thousands.
const ALLOWED_EBX: u32 =
    1 << 5 | 1 << 9 | 1 << 16 | 1 << 17 | 1 << 21 | 1 << 28 | 1 << 30 | 1 << 31;
/// Leaf 7, EDX: FSRM.
const ALLOWED_EDX: u32 = 1 << 4;
/// First leaf of the hypervisor range.
const HYPERVISOR: u32 = 0x4000_0000;

/// Leaf 1, ECX: PCLMULQDQ, SSSE3, FMA, CMPXCHG16B, PCID, SSE4.1, SSE4.2, MOVBE,
/// POPCNT, AES, F16C, RDRAND. A kernel hashes, sums and encrypts with some of
/// them, between two instructions of its own that the emulator refuses.
const REFUSED_FEATURES: u32 = 1 << 1
    | 1 << 9
    | 1 << 12
    | 1 << 13
    | 1 << 17
    | 1 << 19
    | 1 << 20
    | 1 << 22
    | 1 << 23
    | 1 << 25
    | 1 << 29
    | 1 << 30;

/// Takes from prepared leaves what a guest must not use.
pub fn restrict(cpuid: &mut CpuId) {
    cpuid.retain(|entry| entry.function <= HIGHEST_LEAF || entry.function >= HYPERVISOR);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0 => entry.eax = entry.eax.min(HIGHEST_LEAF),
            1 => entry.ecx &= !REFUSED_FEATURES,
            MORE_FEATURES if entry.index == 0 => {
                entry.eax = 0;
                entry.ebx &= ALLOWED_EBX;
                entry.ecx = 0;
                entry.edx &= ALLOWED_EDX;
            }
            // The standard form only.
            XSAVE if entry.index == 1 => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    #[test]
    fn only_the_standard_form_of_xsave_is_left() {
        let leaf = |function, eax, ecx| kvm_cpuid_entry2 {
            function,
            eax,
            ecx,
            ..kvm_cpuid_entry2::default()
        };
        let mut cpuid = CpuId::from_entries(&[
            leaf(0, 0x1f, 0),
            leaf(1, 0, u32::MAX),
            leaf(7, 1, u32::MAX),
            leaf(0xd, 0xe7, 0x980),
            kvm_cpuid_entry2 {
                index: 1,
                ..leaf(0xd, 0xf, 0x1800)
            },
            leaf(0x14, 0, 0),
            leaf(0x4000_0000, 0, 0),
            leaf(0x8000_0001, 0, 0),
        ])
        .unwrap();
        restrict(&mut cpuid);
        let functions: Vec<_> = cpuid.as_slice().iter().map(|e| e.function).collect();
        assert_eq!(functions, [0, 1, 7, 0xd, 0xd, 0x4000_0000, 0x8000_0001]);
        let seen = cpuid.as_slice();
        assert_eq!(seen[0].eax, 0xd);
        assert_eq!(seen[1].ecx & 1 << 23, 0);
        for kept in [26, 28, 31] {
            assert_ne!(seen[1].ecx & 1 << kept, 0);
        }
        assert_eq!((seen[2].eax, seen[2].ecx), (0, 0));
        assert_eq!((seen[3].eax, seen[3].ecx), (0xe7, 0x980));
        assert_eq!((seen[4].eax, seen[4].ecx), (0, 0));
    }
}

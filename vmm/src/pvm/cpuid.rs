//! CPUID of a guest on a PVM host: without what the emulator refuses, as far as
//! KVM lets us; and the rest of it on the command line.

use std::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};
use std::fmt::Write;

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
/// KVM's own features (`Documentation/virt/kvm/x86/cpuid.rst`).
const KVM_FEATURES: u32 = 0x4000_0001;
/// In its EAX: asynchronous page faults, also in nested guests, also by interrupt. To
/// run something else while the host brings a page in takes longer here than to wait.
const ASYNC_PAGE_FAULTS: u32 = 1 << 4 | 1 << 10 | 1 << 14;

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

/// Leaf 1, ECX: x2APIC, to which Linux changes over in the middle of its boot. The
/// processors of a guest here are few enough for what it starts with.
const X2APIC: u32 = 1 << 21;

/// Takes from prepared leaves what a guest must not use.
pub fn restrict(cpuid: &mut CpuId) {
    cpuid.retain(|entry| entry.function <= HIGHEST_LEAF || entry.function >= HYPERVISOR);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0 => entry.eax = entry.eax.min(HIGHEST_LEAF),
            1 => entry.ecx &= !(REFUSED_FEATURES | X2APIC),
            MORE_FEATURES if entry.index == 0 => {
                entry.eax = 0;
                entry.ebx &= ALLOWED_EBX;
                entry.ecx = 0;
                entry.edx &= ALLOWED_EDX;
            }
            KVM_FEATURES => entry.eax &= !ASYNC_PAGE_FAULTS,
            // The standard form only.
            XSAVE if entry.index == 1 => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
            }
            _ => {}
        }
    }
}

/// A register of CPUID with features, as Linux numbers them.
struct Features {
    leaf: u32,
    subleaf: u32,
    register: fn(&CpuidResult) -> u32,
    /// Linux's word for it (`arch/x86/include/asm/cpufeatures.h`).
    word: u32,
    /// Bits of those that a kernel must not use though CPUID has them.
    refused: &'static [u32],
}

/// KVM puts features of the host into these, whatever it is told.
const FORCED: [Features; 5] = [
    // PCLMULQDQ, SSSE3, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, RDRAND. (AVX stays:
    // without it Linux would not save its state.)
    Features {
        leaf: 1,
        subleaf: 0,
        register: |leaf| leaf.ecx,
        word: 4,
        refused: &[1, 9, 17, 19, 20, 22, 23, 25, 30],
    },
    // FSGSBASE, AVX2, SMEP, BMI2, INVPCID, RDSEED, ADX, SMAP, SHA, AVX-512VL. (AVX-512F
    // stays, as AVX does.)
    Features {
        leaf: MORE_FEATURES,
        subleaf: 0,
        register: |leaf| leaf.ebx,
        word: 9,
        refused: &[0, 5, 7, 8, 10, 18, 19, 20, 29, 31],
    },
    // XSAVEOPT, XSAVEC, XGETBV with ECX = 1, XSAVES.
    Features {
        leaf: XSAVE,
        subleaf: 1,
        register: |leaf| leaf.eax,
        word: 10,
        refused: &[0, 1, 2, 3],
    },
    // UMIP, PKU, GFNI, VAES, VPCLMULQDQ, RDPID.
    Features {
        leaf: MORE_FEATURES,
        subleaf: 0,
        register: |leaf| leaf.ecx,
        word: 16,
        refused: &[2, 3, 8, 9, 10, 22],
    },
    // SERIALIZE, AMX-TILE.
    Features {
        leaf: MORE_FEATURES,
        subleaf: 0,
        register: |leaf| leaf.edx,
        word: 18,
        refused: &[14, 24],
    },
];

/// What every guest's kernel is told on this host: not to use what the emulator
/// refuses, though CPUID has it whatever we say; nothing where there is no such
/// feature.
///
/// Features are given by their numbers, 32 times Linux's word and the bit in it: Linux
/// compares each name with all that it knows, and tells of each that it takes away,
/// three thousand instructions; so those that this processor lacks are not named.
pub fn command_line() -> String {
    let highest = __cpuid(0).eax;
    clear(&|leaf, subleaf| {
        if leaf <= highest {
            __cpuid_count(leaf, subleaf)
        } else {
            CpuidResult {
                eax: 0,
                ebx: 0,
                ecx: 0,
                edx: 0,
            }
        }
    })
}

fn clear(cpuid: &dyn Fn(u32, u32) -> CpuidResult) -> String {
    let mut line = String::new();
    for features in &FORCED {
        let has = (features.register)(&cpuid(features.leaf, features.subleaf));
        for bit in features.refused.iter().filter(|bit| has >> **bit & 1 == 1) {
            line.push_str(if line.is_empty() { "clearcpuid=" } else { "," });
            // Writing to a string cannot fail.
            let _ = write!(line, "{}", features.word * 32 + bit);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    fn processor(value: u32) -> impl Fn(u32, u32) -> CpuidResult {
        move |_, _| CpuidResult {
            eax: value,
            ebx: value,
            ecx: value,
            edx: value,
        }
    }

    #[test]
    fn linux_reads_the_whole_list_of_features() {
        let line = clear(&processor(u32::MAX));
        let list = line.strip_prefix("clearcpuid=").unwrap();
        assert!(list.len() < 128, "{} bytes", list.len());
        let numbers: Vec<u32> = list.split(',').map(|one| one.parse().unwrap()).collect();
        assert!(numbers.is_sorted());
        assert_eq!(numbers.len(), 31);
        assert_eq!((numbers[0], numbers[30]), (129, 600));
        // XSAVE, AVX, AVX-512F: whose state would not be saved.
        for kept in [4 * 32 + 26, 4 * 32 + 28, 9 * 32 + 16] {
            assert!(!numbers.contains(&kept), "{kept}");
        }
    }

    #[test]
    fn features_that_the_processor_lacks_are_not_named() {
        assert_eq!(clear(&processor(0)), "");
        assert_eq!(clear(&processor(1 << 9)), "clearcpuid=137,521");
    }

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
            leaf(0x4000_0001, u32::MAX, 0),
            leaf(0x8000_0001, 0, 0),
        ])
        .unwrap();
        restrict(&mut cpuid);
        let functions: Vec<_> = cpuid.as_slice().iter().map(|e| e.function).collect();
        assert_eq!(
            functions,
            [0, 1, 7, 0xd, 0xd, 0x4000_0000, 0x4000_0001, 0x8000_0001]
        );
        let seen = cpuid.as_slice();
        assert_eq!(seen[0].eax, 0xd);
        assert_eq!(seen[1].ecx & 1 << 23, 0);
        for kept in [26, 28, 31] {
            assert_ne!(seen[1].ecx & 1 << kept, 0);
        }
        assert_eq!((seen[2].eax, seen[2].ecx), (0, 0));
        assert_eq!((seen[3].eax, seen[3].ecx), (0xe7, 0x980));
        assert_eq!((seen[4].eax, seen[4].ecx), (0, 0));
        assert_eq!(seen[6].eax, !0x4410);
    }
}

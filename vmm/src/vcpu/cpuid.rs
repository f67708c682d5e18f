//! CPUID: what the host's KVM supports, with the guest's own topology.
//!
//! Leaves as in the Intel SDM (volume 2A, CPUID) and the AMD APM (volume 3,
//! appendix E); KVM's own at 0x4000_0000 as in
//! `Documentation/virt/kvm/x86/cpuid.rst`.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Highest leaf of the hypervisor range that we fill in: timing, below.
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
const HYPERVISOR_BASE: u32 = 0x4000_0000;

/// Frequency of the local APIC timer that KVM emulates, in kHz.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// What of the guest's processors CPUID tells.
#[derive(Debug, Clone, Copy)]
pub struct Topology {
    /// Number of processors, at least 1: cores of one package, one thread each.
    pub vcpus: u8,
    /// Frequency of the guest's time stamp counter in kHz, if KVM knows it.
    pub tsc_khz: Option<u32>,
    /// Whether the local APIC timer has deadline mode.
    pub tsc_deadline: bool,
}

impl Topology {
    /// Bits of an APIC identifier that number the processors.
    fn id_bits(self) -> u32 {
        u32::from(self.vcpus).next_power_of_two().trailing_zeros()
    }
}

/// Makes the host-supported leaves into those of the processors in `topology`.
/// What differs between them is set by [`set_apic_id`].
///
/// # Errors
/// When the leaves are more than KVM takes.
pub fn prepare(cpuid: &mut CpuId, topology: Topology) -> Result<(), vmm_sys_util::fam::Error> {
    let amd = is_amd(cpuid.as_slice());
    let vcpus = u32::from(topology.vcpus);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => {
                // Hypervisor present.
                entry.ecx |= 1 << 31;
                set_bit(&mut entry.ecx, 24, topology.tsc_deadline);
                // Number of addressable identifiers, which counts with the HTT flag.
                set_bit(&mut entry.edx, 28, vcpus > 1);
                entry.ebx = entry.ebx & 0x0000_ffff | (1 << topology.id_bits()) << 16;
            }
            // Deterministic cache parameters (Intel): cores of the package, and
            // caches that are private to a core except at level 3.
            0x4 if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 7;
                let sharing = if level >= 3 { vcpus - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | sharing << 14 | (vcpus - 1) << 26;
            }
            // Performance counters are not virtualized.
            0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            // Extended topology: written anew below.
            0xb | 0x1f => {
                entry.ecx = entry.index & 0xff;
                match entry.index {
                    0 => (entry.eax, entry.ebx, entry.ecx) = (0, 1, 1 << 8),
                    1 => {
                        (entry.eax, entry.ebx, entry.ecx) = (topology.id_bits(), vcpus, 2 << 8 | 1);
                    }
                    _ => (entry.eax, entry.ebx) = (0, 0),
                }
            }
            // Time stamp counter and crystal (Intel): crystal * ebx / eax. The
            // crystal is what drives the local APIC timer, as on real ones.
            0x15 if !amd => {
                if let Some(khz) = topology.tsc_khz {
                    (entry.eax, entry.ebx, entry.ecx) = (APIC_BUS_KHZ, khz, APIC_BUS_KHZ * 1000);
                }
            }
            HYPERVISOR_BASE => entry.eax = entry.eax.max(HYPERVISOR_TIMING),
            // Size identifiers (AMD): number of cores and bits of their identifier.
            0x8000_0008 if amd => {
                entry.ecx = entry.ecx & !0xf0ff | topology.id_bits() << 12 | (vcpus - 1);
            }
            // Cache topology (AMD).
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 7;
                let sharing = if level >= 3 { vcpus - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | sharing << 14;
            }
            _ => {}
        }
    }
    // Some KVMs offer only subleaf 0 of the extended topology.
    for leaf in [0xb, 0x1f] {
        let has = |index| {
            cpuid
                .as_slice()
                .iter()
                .any(|entry| entry.function == leaf && entry.index == index)
        };
        if has(0) && !has(1) {
            cpuid.push(kvm_cpuid_entry2 {
                function: leaf,
                index: 1,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax: topology.id_bits(),
                ebx: vcpus,
                ecx: 2 << 8 | 1,
                ..kvm_cpuid_entry2::default()
            })?;
        }
    }
    if let Some(khz) = topology.tsc_khz {
        cpuid.retain(|entry| entry.function != HYPERVISOR_TIMING);
        cpuid.push(kvm_cpuid_entry2 {
            function: HYPERVISOR_TIMING,
            eax: khz,
            ebx: APIC_BUS_KHZ,
            ..kvm_cpuid_entry2::default()
        })?;
    }
    Ok(())
}

/// Leaves out what says nothing: a processor shows zeroes for a leaf that is
/// not there, if it is not beyond the highest of its range. KVM looks through
/// all entries at each CPUID instruction, and hundreds of times when it is given
/// them.
pub fn leave_out_empty(cpuid: &mut CpuId) {
    const EXTENDED_BASE: u32 = 0x8000_0000;
    let highest = |base| {
        let leaf = cpuid.as_slice().iter().find(|entry| entry.function == base);
        leaf.map_or(0, |entry| entry.eax)
    };
    let (basic, extended) = (highest(0), highest(EXTENDED_BASE));
    cpuid.retain(|entry| {
        let is_empty = [entry.eax, entry.ebx, entry.ecx, entry.edx] == [0; 4];
        let may_go = match entry.function {
            // These are not zero where they are not there, or not on every
            // processor.
            0xb | 0x1f | 0x8000_001e => false,
            function if function < HYPERVISOR_BASE => function <= basic,
            function => function > EXTENDED_BASE && function <= extended,
        };
        !(is_empty && may_go)
    });
}

/// Gives prepared leaves the identity of one processor.
pub fn set_apic_id(cpuid: &mut CpuId, id: u8) {
    let id = u32::from(id);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => entry.ebx = entry.ebx & 0x00ff_ffff | id << 24,
            0xb | 0x1f => entry.edx = id,
            // Extended APIC identifier, core identifier (AMD).
            0x8000_001e => {
                (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, 0);
            }
            _ => {}
        }
    }
}

/// The vendor that leaf 0 names: twelve letters.
pub fn vendor(entries: &[kvm_cpuid_entry2]) -> [u8; 12] {
    let mut name = [0; 12];
    if let Some(leaf) = entries.iter().find(|entry| entry.function == 0) {
        for (letters, register) in name.chunks_exact_mut(4).zip([leaf.ebx, leaf.edx, leaf.ecx]) {
            letters.copy_from_slice(&register.to_le_bytes());
        }
    }
    name
}

/// The features that leaf 0xD says can be enabled in XCR0.
pub fn xsave_features(entries: &[kvm_cpuid_entry2]) -> u64 {
    entries
        .iter()
        .find(|entry| entry.function == 0xd && entry.index == 0)
        .map_or(0, |entry| u64::from(entry.edx) << 32 | u64::from(entry.eax))
}

/// Whether the host's processor is one that QEMU emulates without KVM.
pub fn host_is_emulated() -> bool {
    // The hypervisor's leaf; elsewhere it is some other leaf's content.
    let leaf = std::arch::x86_64::__cpuid(HYPERVISOR_BASE);
    [leaf.ebx, leaf.ecx, leaf.edx]
        .map(u32::to_le_bytes)
        .concat()
        == b"TCGTCGTCGTCG"
}

fn is_amd(entries: &[kvm_cpuid_entry2]) -> bool {
    matches!(&vendor(entries), b"AuthenticAMD" | b"HygonGenuine")
}

fn set_bit(register: &mut u32, bit: u32, value: bool) {
    *register = *register & !(1 << bit) | u32::from(value) << bit;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            ..kvm_cpuid_entry2::default()
        }
    }

    #[test]
    fn only_empty_leaves_within_their_range_go() {
        let highest = |function, eax| kvm_cpuid_entry2 {
            eax,
            ..leaf(function, 0)
        };
        let full = kvm_cpuid_entry2 {
            edx: 1,
            ..leaf(7, 0)
        };
        let kept = [
            highest(0, 0x10),
            full,
            leaf(0xb, 0),
            leaf(0x11, 0),
            leaf(0x4000_0001, 0),
            highest(0x8000_0000, 0x8000_001e),
            leaf(0x8000_001e, 0),
            leaf(0x8000_001f, 0),
        ];
        let mut entries = kept.to_vec();
        entries.extend([leaf(2, 0), leaf(0xd, 2), leaf(0x8000_0002, 0)]);
        let mut cpuid = CpuId::from_entries(&entries).unwrap();
        leave_out_empty(&mut cpuid);
        assert_eq!(cpuid.as_slice(), kept);
    }

    fn prepared(entries: &[kvm_cpuid_entry2], vcpus: u8) -> CpuId {
        let mut cpuid = CpuId::from_entries(entries).unwrap();
        let topology = Topology {
            vcpus,
            tsc_khz: Some(2_500_000),
            tsc_deadline: true,
        };
        prepare(&mut cpuid, topology).unwrap();
        cpuid
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|entry| entry.function == function && entry.index == index)
            .unwrap()
    }

    #[test]
    fn feature_leaf_names_processor_count_and_hypervisor() {
        let mut cpuid = prepared(&[leaf(0, 0), leaf(1, 0)], 3);
        set_apic_id(&mut cpuid, 2);
        let features = find(&cpuid, 1, 0);
        assert_eq!(features.ebx, 2 << 24 | 4 << 16);
        assert_eq!(features.ecx, 1 << 31 | 1 << 24);
        assert_eq!(features.edx, 1 << 28);
        assert_eq!(find(&prepared(&[leaf(1, 0)], 1), 1, 0).edx, 0);
    }

    #[test]
    fn extended_topology_has_both_levels_whatever_the_host_offers() {
        for entries in [
            &[leaf(0xb, 0)][..],
            &[leaf(0xb, 0), leaf(0xb, 1), leaf(0xb, 2)][..],
        ] {
            let mut cpuid = prepared(entries, 16);
            set_apic_id(&mut cpuid, 15);
            let threads = find(&cpuid, 0xb, 0);
            assert_eq!(
                (threads.eax, threads.ebx, threads.ecx, threads.edx),
                (0, 1, 0x100, 15)
            );
            let cores = find(&cpuid, 0xb, 1);
            assert_eq!(
                (cores.eax, cores.ebx, cores.ecx, cores.edx),
                (4, 16, 0x201, 15)
            );
        }
    }

    #[test]
    fn timing_leaf_is_announced_and_there_once() {
        let cpuid = prepared(&[leaf(HYPERVISOR_BASE, 0), leaf(HYPERVISOR_TIMING, 0)], 1);
        assert_eq!(find(&cpuid, HYPERVISOR_BASE, 0).eax, HYPERVISOR_TIMING);
        assert_eq!(find(&cpuid, HYPERVISOR_TIMING, 0).eax, 2_500_000);
        assert_eq!(cpuid.as_slice().len(), 2);
    }

    #[test]
    fn xsave_features_are_those_of_the_first_subleaf() {
        let main = kvm_cpuid_entry2 {
            eax: 7,
            edx: 1 << 30,
            ..leaf(0xd, 0)
        };
        let sub = kvm_cpuid_entry2 {
            eax: 0xf,
            ..leaf(0xd, 1)
        };
        assert_eq!(xsave_features(&[sub, main]), 1 << 62 | 7);
        assert_eq!(xsave_features(&[leaf(1, 0)]), 0);
    }

    #[test]
    fn amd_core_count_is_in_the_size_leaf() {
        let vendor = kvm_cpuid_entry2 {
            ebx: u32::from_le_bytes(*b"Auth"),
            edx: u32::from_le_bytes(*b"enti"),
            ecx: u32::from_le_bytes(*b"cAMD"),
            ..leaf(0, 0)
        };
        let cpuid = prepared(&[vendor, leaf(0x8000_0008, 0)], 16);
        assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 4 << 12 | 15);
    }
}

//! The words of CPUID that are made of feature bits, and the bits' names.

use kvm_bindings::kvm_cpuid_entry2;

/// A register of a CPUID leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    /// Its value; 0 if there is no such leaf.
    pub(super) fn read(self, entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> u32 {
        entries
            .iter()
            .find(|entry| entry.function == function && entry.index == index)
            .map_or(0, |entry| match self {
                Self::Eax => entry.eax,
                Self::Ebx => entry.ebx,
                Self::Ecx => entry.ecx,
                Self::Edx => entry.edx,
            })
    }
}

/// 32 features.
#[derive(Debug, Clone, Copy)]
pub(super) struct Word {
    function: u32,
    index: u32,
    register: Register,
    /// The bits that a host must have if the guest was shown them.
    pub(super) relevant: u32,
    /// Names from bit 0 on, with blanks between them; `-` where a bit has none.
    names: &'static str,
}

impl Word {
    /// Its value in these leaves.
    pub(super) fn read(&self, entries: &[kvm_cpuid_entry2]) -> u32 {
        self.register.read(entries, self.function, self.index)
    }

    /// What a bit is called.
    pub(super) fn name(&self, bit: u32) -> String {
        match self.names.split_whitespace().nth(bit as usize) {
            Some(name) if name != "-" => name.to_owned(),
            _ => format!(
                "CPUID {:#x}.{} {:?} bit {bit}",
                self.function, self.index, self.register
            ),
        }
    }
}

const fn word(
    (function, index, register): (u32, u32, Register),
    relevant: u32,
    names: &'static str,
) -> Word {
    Word {
        function,
        index,
        register,
        relevant,
        names,
    }
}

// In leaf 1 the machine adds the bits for a hypervisor, for the deadline timer
// (where KVM has it apart) and for several processors to what KVM supports;
// MONITOR, OSXSAVE, OSPKE and APIC follow what the guest has switched on.
const MONITOR: u32 = 1 << 3;
const TSC_DEADLINE: u32 = 1 << 24;
const OSXSAVE: u32 = 1 << 27;
const HYPERVISOR: u32 = 1 << 31;
const APIC: u32 = 1 << 9;
const HYPER_THREADING: u32 = 1 << 28;
const OSPKE: u32 = 1 << 4;
/// A number, no features.
const MAWAU: u32 = 0x1f << 17;
/// Bits that say that something is *not* there.
const FDP_EXCPTN_ONLY: u32 = 1 << 6;
const ZERO_FCS_FDS: u32 = 1 << 13;

/// All of them. Names as Linux has them in /proc/cpuinfo, else as the
/// manufacturers' manuals.
pub(super) const FEATURES: [Word; 18] = [
    word(
        (0x1, 0, Register::Ecx),
        !(MONITOR | TSC_DEADLINE | OSXSAVE | HYPERVISOR),
        "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - \
         pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c \
         rdrand hypervisor",
    ),
    word(
        (0x1, 0, Register::Edx),
        !(APIC | HYPER_THREADING),
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - \
         dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    ),
    word(
        (0x7, 0, Register::Ebx),
        !(FDP_EXCPTN_ONLY | ZERO_FCS_FDS),
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a \
         avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel_pt avx512pf \
         avx512er avx512cd sha_ni avx512bw avx512vl",
    ),
    word(
        (0x7, 0, Register::Ecx),
        !(OSPKE | MAWAU),
        "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq \
         avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid key_locker \
         bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks",
    ),
    word(
        (0x7, 0, Register::Edx),
        !0,
        "- sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl \
         md_clear rtm_always_abort - tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig \
         arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 ibrs stibp flush_l1d \
         arch_capabilities core_capabilities ssbd",
    ),
    word(
        (0x7, 1, Register::Eax),
        !0,
        "sha512 sm3 sm4 rao_int avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs \
         fsrc - - - - fred lkgs wrmsrns nmi_source amx_fp16 hreset avx_ifma - - lam msrlist",
    ),
    word(
        (0x7, 1, Register::Edx),
        !0,
        "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - - prefetchiti \
         - - uiret_uif cet_sss avx10",
    ),
    word(
        (0x7, 2, Register::Edx),
        !0,
        "intel_psfd ipred_ctrl rrsba_ctrl ddp_ctrl bhi_ctrl mcdt_no",
    ),
    word(
        (0xd, 0, Register::Eax),
        !0,
        "xsave:x87 xsave:sse xsave:avx xsave:bndregs xsave:bndcsr xsave:avx512-opmask \
         xsave:avx512-zmm_hi256 xsave:avx512-hi16_zmm xsave:pt xsave:pkru xsave:pasid xsave:cet_u \
         xsave:cet_s xsave:hdc xsave:uintr xsave:lbr xsave:hwp xsave:amx-tilecfg \
         xsave:amx-tiledata",
    ),
    word((0xd, 0, Register::Edx), !0, ""),
    word(
        (0xd, 1, Register::Eax),
        !0,
        "xsaveopt xsavec xgetbv1 xsaves xfd",
    ),
    word(
        (0x8000_0001, 0, Register::Ecx),
        !0,
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs \
         xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext \
         ptsc perfctr_llc mwaitx",
    ),
    word(
        (0x8000_0001, 0, Register::Edx),
        !APIC,
        "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - \
         mmxext mmx fxsr fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    word(
        (0x8000_0007, 0, Register::Edx),
        !0,
        "ts fid vid ttp tm stc 100mhzsteps hwpstate constant_tsc cpb aperfmperf",
    ),
    word(
        (0x8000_0008, 0, Register::Ebx),
        !0,
        "clzero irperf xsaveerptr invlpgb rdpru - - - - wbnoinvd - - ibpb - amd_ibrs amd_stibp - \
         stibp_always_on - - - - - amd_ppin amd_ssbd virt_ssbd ssb_no cppc amd_psfd btc_no \
         ibpb_ret",
    ),
    word(
        (0x8000_000a, 0, Register::Edx),
        !0,
        "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists - - \
         pausefilter - pfthreshold avic - v_vmsave_vmload vgif",
    ),
    word(
        (0x8000_0021, 0, Register::Eax),
        !0,
        "no_nested_data_bp - lfence_rdtsc - - - null_sel_clr_base - autoibrs - - - - - - - - - - \
         - - - - - - - - sbpb ibpb_brtype srso_no",
    ),
    word(
        (0x4000_0001, 0, Register::Eax),
        !0,
        "kvm_clock kvm_nopiodelay kvm_mmu kvm_clock2 kvm_asyncpf kvm_steal_time kvm_pv_eoi \
         kvm_pv_unhalt - kvm_pv_tlb_flush kvm_asyncpf_vmexit kvm_pv_ipi kvm_poll_control \
         kvm_pv_sched_yield kvm_asyncpf_int kvm_msi_ext_dest_id kvm_hc_map_gpa_range \
         kvm_migration_control - - - - - - kvmclock_stable",
    ),
];

//! A small guest that counts, saved and restored on this host's KVM, whatever
//! kind that is.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VmFd};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::boot::{EntryPoint, long_mode};
use crate::config::{HugePages, MemSize};
use crate::kvm::{self, KvmError};
use crate::machine::boot_timer::Spans;
use crate::memory::{
    self, Backing, DirtyTracking, GuestMemory, PAGE_SIZE, RestoreMode, layout, written_pages,
};
use crate::probe::probe;
use crate::vcpu::state::msrs_to_save;
use crate::vcpu::{StateSupport, Vcpu, VcpuState, cpuid};

/// `1: inc rcx; mov [rdi], rcx; out 0xf4, al; jmp 1b`.
const CODE: [u8; 10] = [0x48, 0xff, 0xc1, 0x48, 0x89, 0x0f, 0xe6, 0xf4, 0xeb, 0xf6];
const ENTRY: GuestAddress = GuestAddress(0x10_0000);
const COUNTER: GuestAddress = GuestAddress(0x40_0000);
const PORT: u16 = 0xf4;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC: u32 = 0x10;

/// A machine without devices. The order of the fields is that of their end.
struct Guest {
    vcpus: Vec<Vcpu>,
    vm: VmFd,
    memory: GuestMemory,
    backing: Backing,
}

fn open_kvm() -> Option<Kvm> {
    match kvm::open_checked() {
        Ok(kvm) => Some(kvm),
        // There is nothing to try it on.
        Err(KvmError::Missing | KvmError::Denied) => None,
        Err(error) => panic!("{error}"),
    }
}

fn vm(kvm: &Kvm) -> VmFd {
    let vm = kvm.create_vm().unwrap();
    vm.set_tss_address(layout::KVM_TSS as usize).unwrap();
    vm.create_irq_chip().unwrap();
    vm.create_pit2(kvm_pit_config::default()).unwrap();
    vm
}

impl Guest {
    /// Two processors, of which the second waits to be started.
    fn boot(kvm: &Kvm) -> Self {
        let vm = vm(kvm);
        let memory = memory::allocate(MemSize::MIN, HugePages::None).unwrap();
        memory::register(&vm, &memory).unwrap();
        long_mode::write(&memory).unwrap();
        memory.write_slice(&CODE, ENTRY).unwrap();
        let vcpus = [0, 1].map(|id| Vcpu::new(&vm, id).unwrap());
        let mut leaves = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        let topology = cpuid::Topology {
            vcpus: 2,
            tsc_khz: vcpus[0].tsc_khz(),
            tsc_deadline: vm.check_extension(Cap::TscDeadlineTimer),
        };
        cpuid::prepare(&mut leaves, topology).unwrap();
        for vcpu in &vcpus {
            vcpu.prepare(&mut leaves, EntryPoint(ENTRY)).unwrap();
        }
        vcpus[0].set_for_test(COUNTER.0, (KERNEL_GS_BASE, 0x1234_5678));
        Self {
            vcpus: vcpus.into(),
            vm,
            memory,
            backing: Backing::default(),
        }
    }

    fn restore(kvm: &Kvm, snapshot: &Snapshot, mode: RestoreMode) -> Self {
        snapshot.check_host(kvm, false).unwrap();
        let vm = vm(kvm);
        let (memory, backing) = snapshot.restore_memory(mode).unwrap();
        memory::register(&vm, &memory).unwrap();
        let support = StateSupport::new(&vm);
        let state = snapshot.state();
        let mut leaves: CpuId = state.cpuid().unwrap();
        state.vm.restore(&vm).unwrap();
        let restore = |vcpu| Vcpu::restore(&vm, vcpu, &mut leaves, &support, false).unwrap();
        let vcpus = state.vcpus.iter().map(restore).collect();
        Self {
            vcpus,
            vm,
            memory,
            backing,
        }
    }

    /// Lets the first processor count that often, and stop where nothing is
    /// half done.
    fn count(&mut self, times: u32) {
        for _ in 0..times {
            let exit = self.vcpus[0].run_for_test(false);
            assert!(matches!(exit, Ok(VcpuExit::IoOut(PORT, _))), "{exit:?}");
        }
        let exit = self.vcpus[0].run_for_test(true);
        assert_eq!(exit.unwrap_err().errno(), libc::EINTR);
    }

    fn counter(&self) -> u64 {
        self.memory.read_obj(COUNTER).unwrap()
    }

    fn states(&self, kvm: &Kvm) -> Vec<VcpuState> {
        let (support, msrs) = (StateSupport::new(&self.vm), msrs_to_save(kvm).unwrap());
        let save = |vcpu: &Vcpu| vcpu.save(&support, &msrs).unwrap();
        self.vcpus.iter().map(save).collect()
    }

    fn saved(&self, kvm: &Kvm) -> SavedMachine {
        for vcpu in &self.vcpus {
            vcpu.tell_of_pause();
        }
        SavedMachine {
            config: "{}".to_owned(),
            cpuid: self.vcpus[0].cpuid().unwrap(),
            vcpus: self.states(kvm),
            vm: VmState::save(&self.vm).unwrap(),
            devices: Vec::new(),
            boot: Spans::default(),
            nonce: None,
        }
    }
}

/// The states without what goes on by itself.
fn at_rest(mut states: Vec<VcpuState>) -> Vec<VcpuState> {
    for state in &mut states {
        state.msrs.0.retain(|entry| entry.index != TSC);
    }
    states
}

fn msr(state: &VcpuState, index: u32) -> u64 {
    let found = state.msrs.0.iter().find(|entry| entry.index == index);
    found.expect("it is saved").data
}

#[test]
fn a_guest_goes_on_exactly_where_it_stopped() {
    let Some(kvm) = open_kvm() else {
        return;
    };
    let root = tempfile::tempdir().unwrap();
    let (full, change) = (root.path().join("full"), root.path().join("change"));

    let mut guest = Guest::boot(&kvm);
    guest.count(1000);
    let save = MemoryToSave::All {
        backing: &guest.backing,
    };
    let writer = SnapshotWriter::create(&full, &guest.memory, save).unwrap();
    let saved = guest.saved(&kvm);
    let taken = writer.finish(saved.clone(), || true).unwrap();
    // Page tables, code, counter.
    assert!(taken.memory_bytes <= 8 * PAGE_SIZE, "{taken:?}");

    // What has changed since then, in the machine that went on.
    let mut tracking = DirtyTracking::start(&guest.vm, &guest.memory).unwrap();
    guest.count(10);
    tracking.collect(&guest.vm, &guest.memory).unwrap();
    let changed = tracking.changed();
    assert!(
        changed.contains(COUNTER.0 / PAGE_SIZE),
        "{:?}",
        changed.runs().collect::<Vec<_>>()
    );
    assert!(
        changed.count() < 16,
        "{:?}",
        changed.runs().collect::<Vec<_>>()
    );
    let save = MemoryToSave::Changes {
        changed,
        parent: &taken.snapshot,
    };
    SnapshotWriter::create(&change, &guest.memory, save)
        .unwrap()
        .finish(guest.saved(&kvm), || true)
        .unwrap();
    tracking.forget();
    tracking.collect(&guest.vm, &guest.memory).unwrap();
    assert_eq!(tracking.changed().count(), 0);
    assert_eq!(guest.counter(), 1010);
    drop(guest);

    for (dir, mode, start) in [
        (&full, RestoreMode::OnDemand, 1000),
        (&full, RestoreMode::HugePages, 1000),
        (&change, RestoreMode::OnDemand, 1010),
    ] {
        let snapshot = Snapshot::open(dir).unwrap();
        let mut guest = Guest::restore(&kvm, &snapshot, mode);
        let states = guest.states(&kvm);
        assert_eq!(
            at_rest(states.clone()),
            at_rest(snapshot.state().vcpus.clone())
        );
        assert_eq!(msr(&states[0], KERNEL_GS_BASE), 0x1234_5678);
        // Time goes on, from where it stood.
        let (before, after) = (&snapshot.state().vcpus[0], &states[0]);
        assert!(msr(after, TSC) > msr(before, TSC));
        assert_eq!(guest.counter(), start);
        guest.count(1000);
        assert_eq!(guest.counter(), start + 1000);
        if mode == RestoreMode::OnDemand {
            let written = written_pages(&guest.memory).unwrap();
            assert!(written.contains(COUNTER.0 / PAGE_SIZE));
            // The code was run, and not written.
            assert!(!written.contains(ENTRY.0 / PAGE_SIZE));
            assert!(written.count() < 16, "{}", written.count());
        }
        let clock = |state: &VmState| state.clock.0.clock;
        let now = VmState::save(&guest.vm).unwrap();
        assert!(clock(&now) > clock(&snapshot.state().vm));
        assert_eq!(now.ioapic, snapshot.state().vm.ioapic);
        assert_eq!(now.pic_master, snapshot.state().vm.pic_master);
    }
}

#[test]
fn a_counter_is_set_back_by_as_much_as_is_asked_for() {
    // On a PVM host a guest reads the host's counter, whatever it is told.
    let Some(kvm) = open_kvm().filter(|_| probe().kind.is_hardware()) else {
        return;
    };
    let guest = Guest::boot(&kvm);
    let vcpu = &guest.vcpus[0];
    // Less than a second, which a write to the register does not do.
    let cycles = u64::from(vcpu.tsc_khz().unwrap_or(1_000_000)) * 500;
    let before = vcpu.time_stamp_counter().unwrap();
    let shown = before.wrapping_add(cycles);
    while vcpu.time_stamp_counter().unwrap() < shown {
        std::thread::yield_now();
    }
    let begun = vcpu.time_stamp_counter().unwrap();
    if !vcpu.set_back_time_stamp_counter(cycles).unwrap() {
        // A KVM from before it could.
        return;
    }
    let after = vcpu.time_stamp_counter().unwrap();
    assert!(
        vcpu.set_back_time_stamp_counter(cycles.wrapping_neg())
            .unwrap()
    );
    let end = vcpu.time_stamp_counter().unwrap();
    // The same counter read thrice, the second time set back.
    assert!((begun..=end).contains(&after.wrapping_add(cycles)));
}

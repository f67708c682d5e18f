//! Machine states for tests.

use kvm_bindings::kvm_cpuid_entry2;
use proptest::prelude::*;

use super::state::{
    DeviceState, DiskFile, FileContent, MachineState, MemoryLayer, Parent, SnapshotId,
};
use super::vm::VmState;
use crate::kvm::plain::{Bytes, BytesList, Plain};
use crate::memory::Extent;
use crate::vcpu::VcpuState;
use crate::vcpu::state::tests::any_state;

fn filled<T: Plain>(seed: u8) -> Bytes<T> {
    let bytes: Vec<u8> = (0..size_of::<T>()).map(|at| seed ^ at as u8).collect();
    let encoded = minicbor::to_vec(minicbor::bytes::ByteVec::from(bytes)).unwrap();
    minicbor::decode(&encoded).unwrap()
}

fn vm_state(seed: u8) -> VmState {
    VmState {
        pic_master: filled(seed),
        pic_slave: filled(seed),
        ioapic: filled(seed),
        pit: filled(seed),
        clock: filled(seed),
    }
}

/// A processor.
pub(crate) fn vcpu(id: u8) -> VcpuState {
    VcpuState {
        id,
        mp_state: filled(1),
        regs: filled(2),
        sregs: filled(3),
        xsave: Some(vec![1, 2, 3]),
        fpu: None,
        xcrs: Some(filled(4)),
        debug_regs: filled(5),
        lapic: filled(6),
        msrs: BytesList(Vec::new()),
        events: filled(7),
        tsc_khz: Some(1_000_000),
    }
}

/// A machine of one page without processors and devices.
pub(crate) fn machine() -> MachineState {
    MachineState {
        config: "{}".to_owned(),
        cpuid: BytesList(vec![kvm_cpuid_entry2::default()]),
        vcpus: Vec::new(),
        vm: vm_state(7),
        devices: Vec::new(),
        memory: MemoryLayer {
            ranges: vec![Extent {
                start: 0,
                len: 4096,
            }],
            content: FileContent {
                size: 4096,
                sha256: [1; 32],
                data: 0,
            },
            parent: None,
            changed: Vec::new(),
        },
        disks: Vec::new(),
        created_ns: 1,
        build: "test".to_owned(),
        boot: vec![1, 2, 3],
        nonce: Some([9; 16]),
    }
}

fn any_extents() -> impl Strategy<Value = Vec<Extent>> {
    let extent = (any::<u64>(), any::<u64>()).prop_map(|(start, len)| Extent { start, len });
    prop::collection::vec(extent, 0..4)
}

prop_compose! {
    fn any_content()(size in any::<u64>(), sha256 in any::<[u8; 32]>(), data in any::<u64>()) -> FileContent {
        FileContent { size, sha256, data }
    }
}

prop_compose! {
    fn any_layer()(
        ranges in any_extents(),
        content in any_content(),
        parent in prop::option::of((any::<[u8; 32]>(), ".*")),
        changed in any_extents(),
    ) -> MemoryLayer {
        let parent = parent.map(|(id, dir)| Parent { id: SnapshotId(id), dir });
        MemoryLayer { ranges, content, parent, changed }
    }
}

prop_compose! {
    fn any_device()(kind in ".*", id in ".*", version in any::<u32>(), bytes in prop::collection::vec(any::<u8>(), 0..30)) -> DeviceState {
        DeviceState { kind, id, version, bytes }
    }
}

prop_compose! {
    fn any_disk()(
        drive_id in ".*",
        file in prop::option::of(".*"),
        content in prop::option::of(any_content()),
        path in prop::option::of(".*"),
        identity in any::<Option<(u64, i64)>>(),
    ) -> DiskFile {
        DiskFile { drive_id, file, content, path, identity }
    }
}

prop_compose! {
    /// Any machine.
    pub(crate) fn any_machine()(
        config in ".*",
        seed in any::<u8>(),
        leaves in 0..4_usize,
        vcpus in prop::collection::vec(any_state(), 0..3),
        devices in prop::collection::vec(any_device(), 0..3),
        memory in any_layer(),
        disks in prop::collection::vec(any_disk(), 0..3),
        created_ns in any::<u64>(),
        build in ".*",
        boot in prop::collection::vec(any::<u64>(), 0..8),
        nonce in any::<Option<[u8; 16]>>(),
    ) -> MachineState {
        let cpuid = (0..leaves).map(|_| filled(seed).0).collect();
        MachineState {
            config,
            cpuid: BytesList(cpuid),
            vcpus,
            vm: vm_state(seed),
            devices,
            memory,
            disks,
            created_ns,
            build,
            boot,
            nonce,
        }
    }
}

//! Snapshots from end to end, without KVM.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::machine::boot_timer::Spans;
use crate::memory::{Backing, Extent, GuestMemory, PAGE_SIZE, PageSet, RestoreMode};

const PAGES: u64 = 32;

fn memory(value: u8) -> GuestMemory {
    let memory =
        GuestMemory::from_ranges(&[(GuestAddress(0), (PAGES * PAGE_SIZE) as usize)]).unwrap();
    put(&memory, 3, value);
    memory
}

fn put(memory: &GuestMemory, page: u64, value: u8) {
    memory
        .write_slice(&[value; 16], GuestAddress(page * PAGE_SIZE))
        .unwrap();
}

fn get(memory: &GuestMemory, page: u64) -> u8 {
    memory.read_obj(GuestAddress(page * PAGE_SIZE)).unwrap()
}

fn machine() -> SavedMachine {
    let state = testing::machine();
    SavedMachine {
        config: state.config,
        cpuid: state.cpuid.0,
        vcpus: vec![testing::vcpu(0)],
        vm: state.vm,
        devices: Vec::new(),
        boot: Spans::default(),
        nonce: state.nonce,
    }
}

fn all() -> MemoryToSave<'static> {
    static NONE: Backing = Backing(Vec::new());
    MemoryToSave::All { backing: &NONE }
}

fn take(dir: &Path, memory: &GuestMemory) -> Taken {
    SnapshotWriter::create(dir, memory, all())
        .unwrap()
        .finish(machine(), || true)
        .unwrap()
}

fn take_changes(
    dir: &Path,
    memory: &GuestMemory,
    pages: &[u64],
    parent: &SnapshotRef,
) -> Result<Taken, SnapshotError> {
    let mut changed = PageSet::none(PAGES);
    for &page in pages {
        changed.insert(page);
    }
    let save = MemoryToSave::Changes {
        changed: &changed,
        parent,
    };
    SnapshotWriter::create(dir, memory, save)?.finish(machine(), || true)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_snapshot_is_restored() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("snap");
    let taken = take(&dir, &memory(9));
    assert_eq!(taken.memory_bytes, PAGE_SIZE);
    assert_eq!(names(root.path()), ["snap"]);
    assert_eq!(names(&dir), ["memory", "stamp", "state"]);

    let snapshot = Snapshot::open(&dir).unwrap();
    assert_eq!(snapshot.as_parent(), taken.snapshot);
    assert_eq!(
        snapshot.state().memory.ranges,
        [Extent {
            start: 0,
            len: PAGES * PAGE_SIZE
        }]
    );
    let (restored, _) = snapshot.restore_memory(RestoreMode::OnDemand).unwrap();
    assert_eq!((get(&restored, 3), get(&restored, 4)), (9, 0));
    // Two of them share nothing that they write.
    put(&restored, 3, 1);
    let (other, _) = snapshot.restore_memory(RestoreMode::OnDemand).unwrap();
    assert_eq!(get(&other, 3), 9);
}

#[test]
fn what_nobody_waits_for_any_more_replaces_nothing() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("snap");
    let taken = take(&dir, &memory(1));
    let given_up = SnapshotWriter::create(&dir, &memory(2), all())
        .unwrap()
        .finish(machine(), || false);
    assert!(
        matches!(given_up, Err(SnapshotError::Unwanted { .. })),
        "{given_up:?}"
    );
    assert_eq!(names(root.path()), ["snap"]);
    assert_eq!(Snapshot::open(&dir).unwrap().as_parent(), taken.snapshot);
}

#[test]
fn altered_files_are_refused_and_copies_are_not() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("snap");
    take(&dir, &memory(9));
    let path = dir.join("memory");

    // A copy has another identity and the same content.
    let copy = root.path().join("copy");
    fs::create_dir(&copy).unwrap();
    for name in ["memory", "stamp", "state"] {
        fs::copy(dir.join(name), copy.join(name)).unwrap();
    }
    let stamp = fs::read(copy.join("stamp")).unwrap();
    Snapshot::open(&copy).unwrap();
    assert_ne!(
        fs::read(copy.join("stamp")).unwrap(),
        stamp,
        "it was found good"
    );

    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[8], 3 * PAGE_SIZE + 1).unwrap();
    assert!(
        matches!(Snapshot::open(&dir), Err(SnapshotError::Altered { path: at, .. }) if at.ends_with("memory"))
    );
    file.write_all_at(&[9], 3 * PAGE_SIZE + 1).unwrap();
    Snapshot::open(&dir).unwrap();

    file.set_len(PAGE_SIZE).unwrap();
    assert!(matches!(
        Snapshot::open(&dir),
        Err(SnapshotError::Truncated { .. })
    ));
    fs::remove_file(&path).unwrap();
    assert!(matches!(
        Snapshot::open(&dir),
        Err(SnapshotError::Io { .. })
    ));
    fs::remove_file(dir.join("state")).unwrap();
    assert!(matches!(
        Snapshot::open(&dir),
        Err(SnapshotError::Missing { .. })
    ));
}

#[test]
fn changes_lie_over_their_parent() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let memory = memory(9);
    put(&memory, 7, 7);
    let base = take(&at("base"), &memory).snapshot;
    // One page anew, one that becomes zero.
    put(&memory, 8, 8);
    put(&memory, 3, 0);
    let first = take_changes(&at("first"), &memory, &[3, 8], &base).unwrap();
    assert_eq!(first.memory_bytes, PAGE_SIZE);
    put(&memory, 7, 70);
    let second = take_changes(&at("second"), &memory, &[7], &first.snapshot).unwrap();

    let opened = Snapshot::open(&at("second")).unwrap();
    assert_eq!(opened.id(), second.snapshot.id);
    for mode in [RestoreMode::OnDemand, RestoreMode::HugePages] {
        let (restored, _) = opened.restore_memory(mode).unwrap();
        let values = [3, 7, 8].map(|page| get(&restored, page));
        assert_eq!(values, [0, 70, 8], "{mode:?}");
    }

    // A chain cannot replace a part of itself.
    for name in ["base", "first"] {
        let error = take_changes(&at(name), &memory, &[7], &first.snapshot).unwrap_err();
        assert!(
            matches!(error, SnapshotError::ReplacesParent { .. }),
            "{error}"
        );
    }
    // Another snapshot in the parent's place is not the parent.
    take(&at("base"), &memory);
    assert!(matches!(
        Snapshot::open(&at("second")),
        Err(SnapshotError::WrongParent { .. })
    ));
    let error = take_changes(&at("third"), &memory, &[7], &base).unwrap_err();
    assert!(
        matches!(error, SnapshotError::WrongParent { .. }),
        "{error}"
    );
    assert_eq!(names(root.path()), ["base", "first", "second"]);
}

#[test]
fn a_full_snapshot_of_a_restored_machine_stands_alone() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let memory = memory(9);
    let base = take(&at("base"), &memory).snapshot;
    put(&memory, 8, 8);
    take_changes(&at("change"), &memory, &[8], &base).unwrap();
    let opened = Snapshot::open(&at("change")).unwrap();
    let (restored, backing) = opened.restore_memory(RestoreMode::OnDemand).unwrap();
    let save = MemoryToSave::All { backing: &backing };
    let taken = SnapshotWriter::create(&at("whole"), &restored, save)
        .unwrap()
        .finish(machine(), || true)
        .unwrap();
    assert_eq!(taken.memory_bytes, 2 * PAGE_SIZE);
    fs::remove_dir_all(at("base")).unwrap();
    assert!(Snapshot::open(&at("change")).is_err());
    let (again, _) = Snapshot::open(&at("whole"))
        .unwrap()
        .restore_memory(RestoreMode::OnDemand)
        .unwrap();
    assert_eq!([3, 8].map(|page| get(&again, page)), [9, 8]);
}

#[test]
fn disks_are_copied_or_must_stay() {
    let root = tempfile::tempdir().unwrap();
    let (data, template) = (root.path().join("data"), root.path().join("template"));
    fs::write(&data, [5; 8192]).unwrap();
    fs::write(&template, [6; 8192]).unwrap();
    let open = |path: &Path| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap()
    };
    let dir = root.path().join("snap");
    let mut writer = SnapshotWriter::create(&dir, &memory(1), all()).unwrap();
    writer
        .note_disk("root", &template, &open(&template))
        .unwrap();
    writer.copy_disk("data", &open(&data)).unwrap();
    writer.finish(machine(), || true).unwrap();
    open(&data).write_all_at(&[0; 10], 0).unwrap();

    let snapshot = Snapshot::open(&dir).unwrap();
    let disks = &snapshot.state().disks;
    assert_eq!(
        disks[0].path.as_deref(),
        template.canonicalize().unwrap().to_str()
    );
    assert_eq!(snapshot.disk_copy(&disks[0]), None);
    let copy = snapshot.disk_copy(&disks[1]).unwrap();
    assert_eq!(fs::read(&copy).unwrap(), [5; 8192]);
    open(&copy).write_all_at(&[0; 10], 0).unwrap();
    assert!(
        matches!(Snapshot::open(&dir), Err(SnapshotError::Altered { path, .. }) if path == copy)
    );
    open(&copy).write_all_at(&[5; 10], 0).unwrap();
    Snapshot::open(&dir).unwrap();
    fs::write(&template, [6; 4096]).unwrap();
    assert!(
        matches!(Snapshot::open(&dir), Err(SnapshotError::Altered { path, .. }) if path.ends_with("template"))
    );
}

#[test]
fn what_was_begun_and_not_finished_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("snap");
    let old = take(&dir, &memory(1)).snapshot;
    drop(SnapshotWriter::create(&dir, &memory(2), all()).unwrap());
    assert_eq!(names(root.path()), ["snap"]);
    assert_eq!(Snapshot::open(&dir).unwrap().id(), old.id);
}

#[test]
fn devices_must_be_known() {
    let mut state = testing::machine();
    state.devices.push(DeviceState {
        kind: "virtio-toaster".to_owned(),
        id: "t0".to_owned(),
        version: 2,
        bytes: Vec::new(),
    });
    let error = state.check_devices(&[("serial", 1)]).unwrap_err();
    assert!(error.to_string().contains("virtio-toaster"), "{error}");
    let error = state.check_devices(&[("virtio-toaster", 1)]).unwrap_err();
    assert!(matches!(
        error,
        SnapshotError::NewerDevice {
            version: 2,
            known: 1,
            ..
        }
    ));
    state.check_devices(&[("virtio-toaster", 3)]).unwrap();
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    let good = || {
        let mut state = testing::machine();
        state.vcpus.push(testing::vcpu(0));
        state
    };
    good().check().unwrap();
    type Change = fn(&mut MachineState, fn(u64) -> Extent);
    let changes: [Change; 9] = [
        |state, _| state.vcpus.clear(),
        |state, _| state.vcpus[0].id = 1,
        |state, _| state.memory.ranges.clear(),
        |state, page| state.memory.ranges.push(page(0)),
        |state, _| state.memory.ranges[0].start = 1,
        |state, _| state.memory.ranges[0].start = u64::MAX - 4095,
        |state, _| state.memory.content.size = 8192,
        |state, page| state.memory.changed.push(page(0)),
        |state, _| {
            state.disks.push(DiskFile {
                drive_id: "x".to_owned(),
                file: Some("../state".to_owned()),
                content: Some(state.memory.content.clone()),
                path: None,
                identity: None,
            });
        },
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut state = good();
        change(&mut state, |start| Extent {
            start,
            len: PAGE_SIZE,
        });
        assert!(state.check().is_err(), "change {index}");
    }
}

/// Only root may mount something; what is mounted is seen by one thread only.
fn in_small_file_system(path: &Path, size: &str, test: impl FnOnce() + Send) {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    let body = || {
        // SAFETY: the thread shares its file system with no other from here on,
        // and nothing else changes.
        if unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }.is_err() {
            return;
        }
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).unwrap();
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        mount(
            "none",
            path,
            "tmpfs",
            MountFlags::empty(),
            Some(options.as_c_str()),
        )
        .unwrap();
        test();
    };
    std::thread::scope(|scope| scope.spawn(body).join().unwrap());
}

#[test]
fn a_full_disk_leaves_the_old_snapshot_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    in_small_file_system(root.path(), "96k", || {
        let dir = root.path().join("snap");
        let memory = memory(1);
        let old = take(&dir, &memory).snapshot;
        for page in 0..PAGES {
            put(&memory, page, 2);
        }
        let error = SnapshotWriter::create(&dir, &memory, all()).unwrap_err();
        assert!(matches!(error, SnapshotError::NoRoom { .. }), "{error}");
        assert_eq!(names(root.path()), ["snap"]);
        assert_eq!(Snapshot::open(&dir).unwrap().id(), old.id);

        let disk = root.path().join("disk");
        fs::write(&disk, vec![1; 48 << 10]).unwrap();
        let mut writer = SnapshotWriter::create(&dir, &self::memory(1), all()).unwrap();
        let error = writer
            .copy_disk("data", &fs::File::open(&disk).unwrap())
            .unwrap_err();
        assert!(matches!(error, SnapshotError::NoRoom { .. }), "{error}");
        drop(writer);
        assert_eq!(names(root.path()), ["disk", "snap"]);
        assert_eq!(Snapshot::open(&dir).unwrap().id(), old.id);
    });
}

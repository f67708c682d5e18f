//! The file systems that PID 1 mounts, one row each.

use std::ffi::CStr;
use std::path::Path;

use rustix::fs::{Mode, mkdir};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

/// Where the data disk is mounted.
pub(super) const DATA: &str = "/data";

struct Row {
    target: &'static str,
    kind: &'static str,
    flags: MountFlags,
    options: Option<&'static CStr>,
}

const GUARDED: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NOEXEC)
    .union(MountFlags::NODEV);

/// In the order in which they are mounted. `/dev` comes with the kernel's
/// devices; the rest of the usual tree is left to those who need it.
const TABLE: &[Row] = &[
    Row {
        target: "/proc",
        kind: "proc",
        flags: GUARDED,
        options: None,
    },
    Row {
        target: "/sys",
        kind: "sysfs",
        flags: GUARDED,
        options: None,
    },
    Row {
        target: "/dev",
        kind: "devtmpfs",
        flags: MountFlags::NOSUID,
        options: Some(c"mode=755"),
    },
    Row {
        target: "/dev/pts",
        kind: "devpts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: Some(c"mode=620,gid=5,ptmxmode=666"),
    },
    Row {
        target: "/run",
        kind: "tmpfs",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: Some(c"mode=755"),
    },
    Row {
        target: "/sys/fs/cgroup",
        kind: "cgroup2",
        flags: GUARDED,
        options: Some(c"nsdelegate,memory_recursiveprot"),
    },
];

/// Mounts what the kernel offers.
pub(super) fn kernel_file_systems() -> Result<(), String> {
    for row in TABLE {
        make_dir(row.target)?;
        mount(row.kind, row.target, row.kind, row.flags, row.options).map_err(|e| {
            format!(
                "cannot mount {} on {}: {e}; is it in the guest kernel?",
                row.kind, row.target
            )
        })?;
    }
    Ok(())
}

/// No work for a kernel thread after the mount: inode tables of an image that
/// was made in a sparse file read as zeros already, and block bitmaps are read
/// when they are needed. Every copy of a fresh guest would do it first of all.
const DATA_OPTIONS: &CStr = c"noinit_itable,no_prefetch_block_bitmaps";

/// Mounts the data disk.
pub(super) fn data_disk(device: &Path) -> Result<(), String> {
    make_dir(DATA)?;
    let flags = MountFlags::NOATIME | MountFlags::NOSUID | MountFlags::NODEV;
    mount(device, DATA, "ext4", flags, DATA_OPTIONS).map_err(|e| {
        format!(
            "cannot mount the data disk {}: {e}; is it a clean ext4 image?",
            device.display()
        )
    })
}

fn make_dir(path: &str) -> Result<(), String> {
    match mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(format!("cannot make directory {path}: {e}")),
    }
}

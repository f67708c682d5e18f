//! File systems of a VPS: those that the engine makes before the VPS exists,
//! and those that its first process mounts for itself.
//!
//! | where | file system | made by |
//! | --- | --- | --- |
//! | `/` | overlay of template and private files, both ID-mapped | the VPS |
//! | `/proc`, `/sys` (read-only), `/sys/fs/cgroup`, `/dev/mqueue` | views of its namespaces | the VPS |
//! | `/proc/sys/kernel/random/boot_id` | a file of `/run/host` | the VPS |
//! | `/run/host` | a directory of the data disk, or tmpfs | the engine |
//! | `/run/host/proc` | the same as `/proc`, with nothing on it | the VPS |
//! | `/dev` | tmpfs with device nodes, ID-mapped | the engine |
//! | `/dev/pts` | a devpts of its own | the engine |
//! | `/dev/shm`, `/run` | tmpfs, charged to its memory | the VPS |
//!
//! What a VPS mounts belongs to its user namespace, so that the kernel
//! refuses device nodes there, and lets it act with no more than its own
//! rights: the overlay writes private files as the VPS's root, without the
//! engine's privilege to exceed quotas. `/dev` is the exception: the kernel
//! lets nobody make device nodes in a user namespace, so that the engine makes
//! them, in a file system of its own that the VPS can add none to.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, makedev, mkdirat, mknodat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

type Result<T> = std::result::Result<T, Errno>;

/// Character devices of every VPS: name, major, minor.
pub(crate) const DEVICES: &[(&str, u32, u32)] = &[
    ("full", 1, 7),
    ("null", 1, 3),
    ("random", 1, 8),
    ("tty", 5, 0),
    ("urandom", 1, 9),
    ("zero", 1, 5),
];

/// Character devices of VPSs whose kernel has them.
pub(crate) const OPTIONAL_DEVICES: &[(&str, u32, u32)] = &[("fuse", 10, 229), ("net/tun", 10, 200)];

/// Directories of `/dev`.
const DIRECTORIES: &[&str] = &["mqueue", "net", "pts", "shm"];

/// Links of `/dev`.
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("ptmx", "pts/ptmx"),
    ("stderr", "/proc/self/fd/2"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
];

/// Nodes without devices are of no use, and set-user-ID programs have no place
/// outside of the root file system.
pub(crate) const PLAIN: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV);

/// Mounts a new file system, attached nowhere yet.
pub(crate) fn new_mount(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(&context, *key, *value)?;
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Attaches a mount on an open directory or file.
pub(crate) fn attach(mount: impl AsFd, on: impl AsFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", on, "", flags)
}

/// Attaches a mount on `name` directly below an open directory of a file
/// system that no tenant has seen yet.
pub(crate) fn attach_at(mount: impl AsFd, directory: impl AsFd, name: &str) -> Result<()> {
    move_mount(
        mount,
        "",
        directory,
        name,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// Which optional devices this kernel has, as far as its `/dev` shows.
pub(crate) fn optional_devices() -> Vec<(&'static str, u32, u32)> {
    let exists = |name: &str| std::path::Path::new("/dev").join(name).exists();
    OPTIONAL_DEVICES
        .iter()
        .copied()
        .filter(|(name, ..)| exists(name))
        .collect()
}

/// Makes a `/dev`, owned by the engine until it is ID-mapped, with a place for
/// a console when one is wanted. The umask must be 0.
pub(crate) fn device_tree(optional: &[(&str, u32, u32)], console: bool) -> Result<OwnedFd> {
    let options = [("mode", "0755"), ("size", "512k"), ("nr_inodes", "4096")];
    let dev = new_mount("tmpfs", &options, MountAttrFlags::MOUNT_ATTR_NOSUID)?;
    for name in DIRECTORIES {
        mkdirat(&dev, *name, Mode::from_raw_mode(0o755))?;
    }
    for (name, major, minor) in DEVICES.iter().chain(optional) {
        let mode = Mode::from_raw_mode(0o666);
        mknodat(
            &dev,
            *name,
            FileType::CharacterDevice,
            mode,
            makedev(*major, *minor),
        )?;
    }
    for (name, target) in LINKS {
        symlinkat(*target, &dev, *name)?;
    }
    if console {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&dev, "console", flags, Mode::from_raw_mode(0o600))?;
    }
    Ok(dev)
}

/// Makes a devpts instance whose terminals belong to group `tty` of a VPS.
pub(crate) fn terminals(tty: u32) -> Result<OwnedFd> {
    let group = tty.to_string();
    let options = [
        ("gid", group.as_str()),
        ("mode", "0620"),
        ("ptmxmode", "0666"),
        ("max", "1024"),
    ];
    new_mount(
        "devpts",
        &options,
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
}

//! The first process of a VPS, from its birth to its program. It runs in the
//! copy of the engine's single-threaded process that `clone3` makes, and
//! touches nothing of the engine's but through its own namespaces.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree, unmount,
};
use rustix::net::{AddressFamily, SocketType};
use rustix::thread::{Gid, Uid, UnshareFlags};
use rustix::time::{ClockId, clock_gettime};

use super::files;
use super::handshake::Newcomer;
use super::identity;
use super::launch::{self, Failure, Launch};
use super::mounts::{PLAIN, attach, attach_at, new_mount};
use super::raw;
use super::root::mount_point;
use super::step::Step;

/// All that the first process needs.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// The template, ID-mapped before the handshake.
    pub(crate) template: BorrowedFd<'a>,
    /// The directory of private files, ID-mapped before the handshake.
    pub(crate) files: Option<BorrowedFd<'a>>,
    /// `/dev`, ID-mapped before the handshake.
    pub(crate) dev: BorrowedFd<'a>,
    /// `/dev/pts`.
    pub(crate) terminals: BorrowedFd<'a>,
    /// Which terminal is the console.
    pub(crate) console: Option<u32>,
    pub(crate) hostname: &'a str,
    /// `/run/host`.
    pub(crate) host: BorrowedFd<'a>,
    pub(crate) oom_score_adj: Option<i16>,
    pub(crate) filter: &'a [libc::sock_filter],
    pub(crate) env: &'a [CString],
    pub(crate) launch: &'a Launch,
}

/// Becomes the VPS's init, or says where it failed.
pub(crate) fn run(plan: &Plan<'_>, engine: &Newcomer) -> Result<Infallible, Failure> {
    launch::shed_inheritance(plan.oom_score_adj)?;
    // Before anything else is done with the new rights: `/proc/self` belongs
    // to the engine's user as long as this process has not changed its own.
    start_clocks().map_err(|errno| (Step::Time, errno))?;
    engine.wait().map_err(|errno| (Step::Handshake, errno))?;
    become_root().map_err(|errno| (Step::Credentials, errno))?;
    launch::die_with_engine()?;

    let root = mount_root(plan)?;
    mount_views(plan, root.as_fd())?;
    enter(root.as_fd()).map_err(|errno| (Step::Pivot, errno))?;

    rustix::system::sethostname(plan.hostname.as_bytes())
        .map_err(|errno| (Step::Hostname, errno))?;
    match rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None) {
        // A kernel without a network.
        Err(Errno::AFNOSUPPORT) => Ok(()),
        socket => socket.and_then(raw::loopback_up),
    }
    .map_err(|errno| (Step::Loopback, errno))?;
    Err(plan
        .launch
        .execute(plan.env, || launch::confine(plan.filter)))
}

/// A time namespace whose clocks begin now. `execve` enters it.
fn start_clocks() -> Result<(), Errno> {
    raw::unshare(UnshareFlags::NEWTIME)?;
    let monotonic = clock_gettime(ClockId::Monotonic).tv_sec;
    let boottime = clock_gettime(ClockId::Boottime).tv_sec;
    let offsets = format!("monotonic -{monotonic} 0\nboottime -{boottime} 0\n");
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(CWD, "/proc/self/timens_offsets", flags, Mode::empty())?;
    rustix::io::write(file, offsets.as_bytes()).map(drop)
}

fn become_root() -> Result<(), Errno> {
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
}

/// Mounts the overlay.
///
/// Everything happens on top of the old root, by open directories and paths
/// relative to the stage, in a mount namespace that nobody else is in yet.
fn mount_root(plan: &Plan<'_>) -> Result<std::os::fd::OwnedFd, Failure> {
    let staged = |errno| (Step::Stage, errno);
    let in_memory;
    let stage = if let Some(files) = plan.files {
        files
    } else {
        in_memory = new_mount("tmpfs", &[("mode", "0700")], PLAIN).map_err(staged)?;
        for name in ["lower", "root", "upper", "work"] {
            mkdirat(&in_memory, name, Mode::from_raw_mode(0o755)).map_err(staged)?;
        }
        in_memory.as_fd()
    };
    attach_at(stage, CWD, "/").map_err(staged)?;
    attach_at(plan.template, stage, "lower").map_err(staged)?;
    rustix::process::fchdir(stage).map_err(staged)?;
    let overlay = || {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "lowerdir", "lower")?;
        fsconfig_set_string(&context, "upperdir", "upper")?;
        fsconfig_set_string(&context, "workdir", "work")?;
        // The only attributes that a user namespace may write.
        fsconfig_set_flag(&context, "userxattr")?;
        fsconfig_create(&context)?;
        fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_NODEV,
        )
    };
    let root = overlay().map_err(|errno| (Step::Overlay, errno))?;
    attach_at(&root, stage, "root").map_err(staged)?;
    Ok(root)
}

/// Mounts everything below the root.
fn mount_views(plan: &Plan<'_>, root: BorrowedFd<'_>) -> Result<(), Failure> {
    let no_programs = PLAIN | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let at = |step: Step| move |errno: Errno| (step, errno);

    let procfs = || {
        let proc = new_mount("proc", &[], no_programs)?;
        attach(&proc, mount_point(root, "proc")?)?;
        Ok(proc)
    };
    let proc = procfs().map_err(at(Step::Proc))?;

    // Read-only: keeps udev and its like from managing the machine's devices.
    let sysfs = || {
        let read_only = no_programs | MountAttrFlags::MOUNT_ATTR_RDONLY;
        let sys = new_mount("sysfs", &[], read_only)?;
        attach(&sys, mount_point(root, "sys")?)?;
        Ok(sys)
    };
    let sys = sysfs().map_err(at(Step::Sysfs))?;
    let cgroup = || attach_at(new_mount("cgroup2", &[], no_programs)?, &sys, "fs/cgroup");
    cgroup().map_err(at(Step::Cgroup))?;

    let dev = || {
        attach(plan.dev, mount_point(root, "dev")?)?;
        attach_at(plan.terminals, plan.dev, "pts")?;
        attach_at(
            new_mount("tmpfs", &[("mode", "1777")], PLAIN)?,
            plan.dev,
            "shm",
        )?;
        match new_mount("mqueue", &[], no_programs) {
            // A kernel without message queues.
            Err(Errno::NODEV) => {}
            mqueue => attach_at(mqueue?, plan.dev, "mqueue")?,
        }
        if let Some(number) = plan.console {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let terminal = open_tree(plan.terminals, number.to_string(), flags)?;
            attach_at(terminal, plan.dev, "console")?;
        }
        Ok(())
    };
    dev().map_err(at(Step::Dev))?;

    let run = || {
        let run = new_mount("tmpfs", &[("mode", "0755")], PLAIN)?;
        mkdirat(&run, "lock", Mode::from_raw_mode(0o1777))?;
        mkdirat(&run, "host", Mode::from_raw_mode(0o755))?;
        // Before anything can be mounted on it.
        attach(&run, mount_point(root, "run")?)?;
        attach_at(plan.host, &run, "host")
    };
    run().map_err(at(Step::Run))?;

    // The kernel lets a user namespace in here mount a `/proc` of its own only
    // if there is one that nothing covers.
    let boot_id = || {
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let uncovered = open_tree(&proc, "", clone | OpenTreeFlags::AT_EMPTY_PATH)?;
        attach_at(uncovered, plan.host, files::PROC)?;
        let own = open_tree(plan.host, identity::BOOT_ID, clone)?;
        attach_at(own, &proc, identity::KERNEL_BOOT_ID)
    };
    boot_id().map_err(at(Step::BootId))
}

/// Makes `root` the root, and lets go of everything else.
fn enter(root: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    // Two mounts lie on "." now, the upper one on the lower: the stage, and the
    // old root with everything else. A third call would let go of `root`.
    unmount(".", UnmountFlags::DETACH)?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

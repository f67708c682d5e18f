//! Spawning the machine process.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::error::GuestError;
use super::rundir::GuestDir;
use crate::machine::boot_timer::now_ns;

/// Names the machine process' program, in place of the one beside this program.
pub const VMM_ENV: &str = "INSULA_VMM";

/// What the machine process is told besides where its guest is.
#[derive(Debug, Default)]
pub(super) struct ProcessOptions {
    /// It ends with the thread that spawns it.
    pub(super) ephemeral: bool,
    /// More arguments.
    pub(super) arguments: Vec<OsString>,
}

/// The machine process' program: `$INSULA_VMM`, else `insula-vmm` beside this
/// program (or, for a test program, in the directory above), else in `PATH`.
pub fn find_vmm() -> PathBuf {
    if let Some(path) = env::var_os(VMM_ENV).filter(|value| !value.is_empty()) {
        return path.into();
    }
    const PROGRAM: &str = "insula-vmm";
    if let Ok(own) = env::current_exe() {
        let beside = own.ancestors().skip(1).take(2).map(|dir| dir.join(PROGRAM));
        if let Some(found) = beside.into_iter().find(|path| path.is_file()) {
            return found;
        }
    }
    env::var_os("PATH")
        .and_then(|path| {
            env::split_paths(&path)
                .map(|dir| dir.join(PROGRAM))
                .find(|path| path.is_file())
        })
        .unwrap_or_else(|| PROGRAM.into())
}

/// Spawns `program` for the guest in `dir`, in a session of its own, with its
/// output in the guest's `vmm.log`.
///
/// It inherits `lock`, so that the guest's directory stays locked until the
/// last of the two is gone, and `ready`, to say on it how the start went.
pub(super) fn spawn(
    program: &Path,
    dir: &GuestDir,
    lock: BorrowedFd<'_>,
    ready: BorrowedFd<'_>,
    process: &ProcessOptions,
) -> Result<Child, GuestError> {
    let path = dir.vmm_log_path();
    let log = File::create(&path).map_err(|source| GuestError::io("make", &path, source))?;
    let log_too = log
        .try_clone()
        .map_err(|source| GuestError::io("duplicate", &path, source))?;

    let mut command = Command::new(program);
    command
        .arg("--dir")
        .arg(dir.path())
        .args(["--ready-fd", &ready.as_raw_fd().to_string()])
        .args(["--lock-fd", &lock.as_raw_fd().to_string()])
        // The start begins here: executing the program is part of it.
        .args(["--start-ns", &now_ns().to_string()])
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_too);
    command.args(&process.arguments);
    let ephemeral = process.ephemeral;
    let inherited = [lock.as_raw_fd(), ready.as_raw_fd()];
    // SAFETY: the closure runs between fork and exec and makes nothing but
    // system calls that are async-signal-safe: no allocation, no lock.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            if ephemeral {
                rustix::process::set_parent_process_death_signal(Some(
                    rustix::process::Signal::KILL,
                ))?;
            }
            inherited.iter().try_for_each(|fd| keep_across_exec(*fd))
        });
    }
    command.spawn().map_err(|source| GuestError::Vmm {
        path: program.to_owned(),
        source,
    })
}

/// Clears close-on-exec. Done in the child, since another thread of the parent
/// that spawns at the same time would otherwise give the lock away too.
fn keep_across_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: the descriptors are open in the parent for the whole of `spawn`,
    // which borrows them, so the child's copies are open as well.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
    Ok(())
}

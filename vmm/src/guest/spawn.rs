//! Spawning the machine process.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

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
/// errors in the guest's `vmm.log`.
///
/// It inherits `lock` as its standard input, so that the guest's directory
/// stays locked until the last of the two is gone, and `ready` as its standard
/// output, to say on it how the start went. Nothing has to be done between
/// fork and exec that way, so that the standard library can do without the
/// fork, which would copy this process' page tables only to throw them away:
/// the process itself leaves our session and ties its life to ours.
pub(super) fn spawn(
    program: &Path,
    dir: &GuestDir,
    lock: BorrowedFd<'_>,
    ready: BorrowedFd<'_>,
    process: &ProcessOptions,
) -> Result<Child, GuestError> {
    let path = dir.vmm_log_path();
    let log = File::create(&path).map_err(|source| GuestError::io("make", &path, source))?;
    let own = |fd: BorrowedFd<'_>| {
        fd.try_clone_to_owned()
            .map_err(|source| GuestError::io("duplicate a descriptor for", &path, source))
    };

    let mut command = Command::new(program);
    command
        .stdin(own(lock)?)
        .stdout(own(ready)?)
        .stderr(log)
        .arg("--dir")
        .arg(dir.path())
        .args(["--ready-fd", "1", "--lock-fd", "0", "--new-session"]);
    if process.ephemeral {
        command.args(["--end-with", &std::process::id().to_string()]);
    }
    command.args(&process.arguments);
    // The start begins here: executing the program is part of it.
    command.args(["--start-ns", &now_ns().to_string()]);
    command.spawn().map_err(|source| GuestError::Vmm {
        path: program.to_owned(),
        source,
    })
}

//! Spawning the machine process.

use std::env;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::child::Child;
use super::error::GuestError;
use super::rundir::GuestDir;
use crate::machine::boot_timer::now_ns;

/// Names the machine process' program, in place of the one beside this program.
pub const VMM_ENV: &str = "INSULA_VMM";

/// Whether a program that panics says where it was.
const BACKTRACE: &str = "RUST_BACKTRACE";

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
    in_path(Path::new(PROGRAM)).unwrap_or_else(|| PROGRAM.into())
}

/// Where a program is: the path that it is, or for a name alone, a place in
/// `PATH`.
fn in_path(program: &Path) -> Option<PathBuf> {
    if program.components().nth(1).is_some() || program.has_root() {
        return Some(program.to_owned());
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// Spawns `program` for the guest in `dir`, in a session of its own, with its
/// errors in the guest's `vmm.log`.
///
/// It inherits `lock` as its standard input, so that the guest's directory
/// stays locked until the last of the two is gone, and `ready` as its standard
/// output, to say on it how the start went. The process itself leaves our
/// session and ties its life to ours. Of our environment it gets nothing that
/// it does not use: a guest that breaks into it finds no secrets there.
pub(super) fn spawn(
    program: &Path,
    dir: &GuestDir,
    lock: BorrowedFd<'_>,
    ready: BorrowedFd<'_>,
    process: &ProcessOptions,
) -> Result<Child, GuestError> {
    let path = dir.vmm_log_path();
    let log = File::create(&path).map_err(|source| GuestError::io("make", &path, source))?;
    // Never below 3.
    let own = |fd: BorrowedFd<'_>| {
        fd.try_clone_to_owned()
            .map_err(|source| GuestError::io("duplicate a descriptor for", &path, source))
    };
    let streams = [own(lock)?, own(ready)?, own(log.as_fd())?];

    let mut arguments: Vec<OsString> = vec![program.into(), "--dir".into(), dir.path().into()];
    arguments.extend(["--ready-fd", "1", "--lock-fd", "0", "--new-session"].map(OsString::from));
    if process.ephemeral {
        arguments.extend(["--end-with".into(), std::process::id().to_string().into()]);
    }
    arguments.extend(process.arguments.iter().cloned());

    let failed = |source| GuestError::Vmm {
        path: program.to_owned(),
        source,
    };
    let text = |text: OsString| CString::new(text.into_vec()).map_err(io::Error::from);
    let mut arguments = arguments
        .into_iter()
        .map(text)
        .collect::<io::Result<Vec<_>>>()
        .map_err(failed)?;
    let environment: Vec<CString> = env::var_os(BACKTRACE)
        .and_then(|value| {
            text(
                [BACKTRACE, "="]
                    .map(OsString::from)
                    .into_iter()
                    .chain([value])
                    .collect(),
            )
            .ok()
        })
        .into_iter()
        .collect();
    // A name alone would be looked for in the working directory.
    let found = match in_path(program) {
        Some(path) => text(path.into()).map_err(failed)?,
        None => return Err(failed(io::ErrorKind::NotFound.into())),
    };
    // The start begins here: executing the program is part of it.
    let started = now_ns().to_string();
    for argument in ["--start-ns", &started] {
        arguments.push(text(argument.into()).map_err(failed)?);
    }
    Child::spawn(&found, &arguments, &environment, &streams).map_err(failed)
}

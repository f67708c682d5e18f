//! Starting a process outside of all VPSs.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::Errno;
use rustix::process::{Gid, Pid, Uid, WaitId, WaitIdOptions, chdir, setsid, waitid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::thread::{
    LinkNameSpaceType, move_into_link_name_space, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use rustix::{pipe, termios};

use super::{MachineRoot, users};
use crate::protocol::{Code, Exec, Failure, Terminal};
use crate::sys;

/// Where a process without a `PATH` finds its programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Longest report of a child that failed before `execve`.
const MAX_REPORT: usize = 512;

/// Where a new process's standard streams go.
#[derive(Debug)]
pub enum Streams<'a> {
    /// To these: standard input, output and error.
    Files([BorrowedFd<'a>; 3]),
    /// To a new terminal, which becomes the controlling one.
    Terminal(Terminal),
}

/// A process that was executed.
#[derive(Debug)]
pub struct Spawned {
    /// Its PID, also its session and process group.
    pub pid: i32,
    /// The master side of its terminal.
    pub terminal: Option<OwnedFd>,
}

/// What a child reports when it could not execute its program.
struct Refusal {
    code: Code,
    errno: Option<Errno>,
    message: String,
}

impl Refusal {
    fn system(what: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        move |errno| Self {
            code: Code::Internal,
            errno: Some(errno),
            message: format!("cannot {}: {errno}", what.into()),
        }
    }

    fn invalid(message: String) -> Self {
        Self {
            code: Code::Invalid,
            errno: None,
            message,
        }
    }

    fn into_failure(self) -> Failure {
        Failure {
            code: self.code,
            message: self.message,
            errno: self.errno.map(Errno::raw_os_error),
        }
    }
}

/// Starts `exec` outside of all VPSs and returns when it has been executed.
/// `exec.target` and `exec.terminal` are not looked at: `streams` says.
///
/// `root` is where it runs; `None` is the agent's own root.
/// `oom_score_adj` is reset when the agent's own is `protected`.
///
/// # Errors
/// [`Code::CommandNotFound`], [`Code::CommandNotExecutable`], an unknown user,
/// a missing directory, or a full system.
pub fn spawn(
    root: Option<&MachineRoot>,
    exec: &Exec,
    streams: &Streams<'_>,
    protected: bool,
) -> Result<Spawned, Failure> {
    spawn_refusing(root, exec, streams, protected).map_err(Refusal::into_failure)
}

fn spawn_refusing(
    root: Option<&MachineRoot>,
    exec: &Exec,
    streams: &Streams<'_>,
    protected: bool,
) -> Result<Spawned, Refusal> {
    let Some(program) = exec.argv.first().filter(|program| !program.is_empty()) else {
        return Err(Refusal::invalid(
            "no program was given to execute; name one".into(),
        ));
    };
    let terminal = match streams {
        Streams::Files(_) => None,
        Streams::Terminal(size) => Some(open_terminal(root, *size)?),
    };
    let (report_read, report_write) = pipe::pipe_with(pipe::PipeFlags::CLOEXEC)
        .map_err(Refusal::system("make a pipe for a new process"))?;

    let forked = sys::fork().map_err(Refusal::system(format!("fork for {program}")))?;
    let Some(pid) = forked else {
        let terminal = terminal.as_ref();
        run_child(root, exec, streams, terminal, protected, &report_write)
    };
    drop(report_write);

    let mut report = [0; MAX_REPORT];
    let length = loop {
        match rustix::io::read(&report_read, &mut report) {
            Err(Errno::INTR) => {}
            Ok(length) => break length,
            Err(_) => break 0,
        }
    };
    if length == 0 {
        return Ok(Spawned {
            pid,
            terminal: terminal.map(|(master, _)| master),
        });
    }
    // The child never became a program: it is ours to reap, here and now.
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
    }
    Err(decode_report(&report[..length]))
}

fn open_terminal(
    root: Option<&MachineRoot>,
    size: Terminal,
) -> Result<(OwnedFd, OwnedFd), Refusal> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = match root {
        Some(root) => openat2(
            &root.directory,
            "dev/pts/ptmx",
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        ),
        None => open("/dev/ptmx", flags, Mode::empty()),
    }
    .map_err(Refusal::system("open /dev/ptmx for a terminal"))?;
    unlockpt(&master).map_err(Refusal::system("unlock a terminal"))?;
    let peer_flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, peer_flags)
        .map_err(Refusal::system("open the other side of a terminal"))?;
    termios::tcsetwinsize(&master, window_size(size))
        .map_err(Refusal::system("set the size of a terminal"))?;
    Ok((master, slave))
}

/// A terminal's size as the kernel takes it.
pub(crate) fn window_size(size: Terminal) -> termios::Winsize {
    termios::Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn run_child(
    root: Option<&MachineRoot>,
    exec: &Exec,
    streams: &Streams<'_>,
    terminal: Option<&(OwnedFd, OwnedFd)>,
    protected: bool,
    report: &OwnedFd,
) -> ! {
    // A panic must not unwind into the parent's event loop.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        become_program(root, exec, streams, terminal, protected)
    }));
    let refusal = match outcome {
        Ok(Err(refusal)) => refusal,
        Ok(Ok(never)) => match never {},
        Err(_) => Refusal {
            code: Code::Internal,
            errno: None,
            message: "the new process panicked before it was executed".into(),
        },
    };
    let _ = rustix::io::write(report, &encode_report(&refusal));
    sys::exit_now(125)
}

fn become_program(
    root: Option<&MachineRoot>,
    exec: &Exec,
    streams: &Streams<'_>,
    terminal: Option<&(OwnedFd, OwnedFd)>,
    protected: bool,
) -> Result<Infallible, Refusal> {
    setsid().map_err(Refusal::system("begin a session"))?;
    if protected {
        // Not fatal: the process is merely spared by the OOM killer.
        let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    }
    match (streams, terminal) {
        (Streams::Files(files), _) => {
            for (fd, target) in files.iter().zip(0..) {
                sys::place(fd, target).map_err(Refusal::system("place a standard stream"))?;
            }
        }
        (Streams::Terminal(_), Some((_, slave))) => {
            rustix::process::ioctl_tiocsctty(slave)
                .map_err(Refusal::system("take a controlling terminal"))?;
            for target in 0..3 {
                sys::place(slave, target).map_err(Refusal::system("place a standard stream"))?;
            }
        }
        (Streams::Terminal(_), None) => {}
    }
    if let Some(root) = root {
        move_into_link_name_space(root.namespace.as_fd(), Some(LinkNameSpaceType::Mount))
            .map_err(Refusal::system("enter the machine's root"))?;
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));

    let identity = users::look_up(exec.user.as_deref()).map_err(Refusal::invalid)?;
    let own = rustix::process::geteuid();
    if own.is_root() {
        become_user(&identity)?;
    } else if exec.user.is_some() && identity.uid != own.as_raw() {
        // Without a wish, an agent that is not root serves its own user.
        return Err(Refusal::invalid(
            "this agent does not run as root and cannot change the user".into(),
        ));
    }

    let directory = match (&exec.cwd, &exec.user) {
        (Some(cwd), _) => cwd.as_str(),
        (None, Some(_)) => identity.home.as_str(),
        (None, None) => "/",
    };
    if let Err(errno) = chdir(directory) {
        if exec.cwd.is_some() {
            return Err(Refusal::system(format!("change to directory {directory}"))(
                errno,
            ));
        }
        chdir("/").map_err(Refusal::system("change to directory /"))?;
    }

    let env = environment(exec, &identity, terminal.is_some())?;
    let argv = exec
        .argv
        .iter()
        .map(|argument| c_string(argument))
        .collect::<Result<Vec<_>, _>>()?;
    sys::close_on_exec_from(3).map_err(Refusal::system("close inherited files"))?;
    sys::unblock_signals().map_err(Refusal::system("unblock signals"))?;
    Err(execute(&exec.argv[0], &argv, &env))
}

fn become_user(identity: &users::Identity) -> Result<(), Refusal> {
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let groups: Vec<_> = identity
        .groups
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    set_thread_groups(&groups)
        .and_then(|()| set_thread_res_gid(gid, gid, gid))
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        .map_err(Refusal::system(format!("become user {}", identity.name)))
}

fn c_string(text: &str) -> Result<CString, Refusal> {
    CString::new(text)
        .map_err(|_| Refusal::invalid(format!("{text:?} contains a NUL byte; remove it")))
}

/// The minimal environment with the request's on top.
fn environment(
    exec: &Exec,
    identity: &users::Identity,
    terminal: bool,
) -> Result<Vec<CString>, Refusal> {
    let mut env: Vec<(&str, &str)> = vec![
        ("PATH", PATH),
        ("HOME", &identity.home),
        ("USER", &identity.name),
        ("LOGNAME", &identity.name),
        ("SHELL", &identity.shell),
    ];
    if terminal {
        env.push(("TERM", "xterm"));
    }
    for entry in &exec.env {
        let (name, value) = entry
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| {
                Refusal::invalid(format!(
                    "{entry:?} is not an environment entry; use NAME=value"
                ))
            })?;
        env.retain(|(known, _)| *known != name);
        env.push((name, value));
    }
    env.iter()
        .map(|(name, value)| c_string(&format!("{name}={value}")))
        .collect()
}

/// Executes `program`, looked up in the environment's `PATH`.
fn execute(program: &str, argv: &[CString], env: &[CString]) -> Refusal {
    let argv: Vec<&CStr> = argv.iter().map(CString::as_c_str).collect();
    let env: Vec<&CStr> = env.iter().map(CString::as_c_str).collect();
    let attempt = |path: String| match c_string(&path) {
        Ok(path) => sys::execve(&path, &argv, &env),
        Err(_) => Errno::INVAL,
    };
    let mut errno = Errno::NOENT;
    if program.contains('/') {
        errno = attempt(program.into());
    } else {
        let path = env
            .iter()
            .find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="))
            .and_then(|path| std::str::from_utf8(path).ok())
            .unwrap_or(PATH);
        for directory in path.split(':') {
            let directory = if directory.is_empty() { "." } else { directory };
            match attempt(format!("{directory}/{program}")) {
                Errno::NOENT | Errno::NOTDIR => {}
                // Something of that name is there; a later one may do.
                Errno::ACCESS => errno = Errno::ACCESS,
                other => {
                    errno = other;
                    break;
                }
            }
        }
    }
    let code = match errno {
        Errno::NOENT | Errno::NOTDIR => Code::CommandNotFound,
        Errno::NOMEM | Errno::AGAIN => Code::Exhausted,
        _ => Code::CommandNotExecutable,
    };
    let message = match code {
        Code::CommandNotFound => format!("{program}: not found"),
        _ => format!("{program}: cannot be executed: {errno}"),
    };
    Refusal {
        code,
        errno: Some(errno),
        message,
    }
}

/// A refusal as bytes: the code, the error number, the text.
fn encode_report(refusal: &Refusal) -> Vec<u8> {
    let errno = refusal.errno.map_or(0, Errno::raw_os_error);
    let mut report = vec![match refusal.code {
        Code::CommandNotFound => 1,
        Code::CommandNotExecutable => 2,
        Code::Invalid => 3,
        Code::Exhausted => 4,
        _ => 0,
    }];
    report.extend_from_slice(&errno.to_le_bytes());
    report.extend_from_slice(refusal.message.as_bytes());
    report.truncate(MAX_REPORT);
    report
}

fn decode_report(report: &[u8]) -> Refusal {
    let code = match report.first() {
        Some(1) => Code::CommandNotFound,
        Some(2) => Code::CommandNotExecutable,
        Some(3) => Code::Invalid,
        Some(4) => Code::Exhausted,
        _ => Code::Internal,
    };
    let errno = report
        .get(1..5)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_le_bytes)
        .filter(|errno| *errno != 0)
        .map(Errno::from_raw_os_error);
    let message = String::from_utf8_lossy(report.get(5..).unwrap_or_default()).into_owned();
    Refusal {
        code,
        errno,
        message,
    }
}

/// Opens `path` below `root` (or below `/`), as a process there would.
///
/// # Errors
/// The kernel's.
pub(crate) fn open_in(
    root: Option<&MachineRoot>,
    path: &str,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    match root {
        Some(root) => openat2(
            &root.directory,
            path,
            flags,
            mode,
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        ),
        None => rustix::fs::openat(CWD, path, flags, mode),
    }
}

//! The last steps of every new process: what it becomes, and on which streams.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::termios::Winsize;
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

use super::step::Step;
use super::{Error, Io, raw};
use crate::protocol::Terminal;

/// Where programs are looked for.
pub(crate) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A failure of the new process.
pub(crate) type Failure = (Step, Errno);

/// Where a new process's standard streams go.
#[derive(Debug)]
pub(crate) enum Streams {
    /// They stay, and so does the session.
    Inherit,
    /// To these files, of the engine's process.
    Files([RawFd; 3]),
    /// To this terminal.
    Terminal(OwnedFd),
}

impl Streams {
    /// The streams for `io`; `slave` is its terminal.
    pub(crate) fn new(io: &Io<'_>, slave: Option<OwnedFd>) -> Self {
        match (io, slave) {
            (_, Some(slave)) => Self::Terminal(slave),
            (Io::Files(files), None) => Self::Files(files.each_ref().map(AsRawFd::as_raw_fd)),
            (Io::Inherit | Io::Terminal(_), None) => Self::Inherit,
        }
    }

    /// Makes them the process's own.
    fn connect(&self) -> Result<(), Errno> {
        match self {
            Self::Inherit => take_foreground(),
            Self::Files(files) => {
                rustix::process::setsid()?;
                // First out of the way of 0, 1 and 2.
                let copies = [copy(files[0])?, copy(files[1])?, copy(files[2])?];
                dup2_stdin(&copies[0])?;
                dup2_stdout(&copies[1])?;
                dup2_stderr(&copies[2])
            }
            Self::Terminal(slave) => {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(slave)?;
                dup2_stdin(slave)?;
                dup2_stdout(slave)?;
                dup2_stderr(slave)
            }
        }
    }
}

fn copy(file: RawFd) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(raw::borrow(file), 10)
}

/// As a shell does with a job: a process group of its own, in the foreground
/// of the terminal, when there is one.
fn take_foreground() -> Result<(), Errno> {
    let stdin = rustix::stdio::stdin();
    if !rustix::termios::isatty(stdin) {
        return Ok(());
    }
    rustix::process::setpgid(None, None)?;
    // SIGTTOU would stop us; unblocked just before execve.
    raw::set_signal_mask(u64::MAX);
    match rustix::termios::tcsetpgrp(stdin, rustix::process::getpid()) {
        // Not the terminal of this session: nothing to take.
        Err(Errno::NOTTY) => Ok(()),
        result => result,
    }
}

/// What a process becomes.
#[derive(Debug)]
pub(crate) struct Launch {
    argv: Vec<CString>,
    pub(crate) streams: Streams,
}

impl Launch {
    /// # Errors
    /// No program, or a NUL in an argument.
    pub(crate) fn new(argv: &[String], streams: Streams) -> Result<Self, Error> {
        if argv.first().is_none_or(String::is_empty) {
            return Err(Error::Invalid("no program to execute was given".into()));
        }
        Ok(Self {
            argv: c_strings(argv)?,
            streams,
        })
    }

    /// The program's name, for messages.
    pub(crate) fn program(&self) -> String {
        self.argv
            .first()
            .map(|arg| arg.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// Connects the streams, closes everything else, and executes the program;
    /// returns only the failure. `confine` comes between.
    pub(crate) fn execute(
        &self,
        env: &[CString],
        confine: impl FnOnce() -> Result<(), Failure>,
    ) -> Failure {
        if let Err(errno) = self.streams.connect() {
            return (Step::Streams, errno);
        }
        if let Err(failure) = confine() {
            return failure;
        }
        if let Err(errno) = raw::close_others_on_exec() {
            return (Step::Files, errno);
        }
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        raw::set_signal_mask(0);
        (Step::Exec, self.search(env))
    }

    fn search(&self, env: &[CString]) -> Errno {
        let Some(program) = self.argv.first() else {
            return Errno::INVAL;
        };
        if program.as_bytes().contains(&b'/') {
            return raw::execve(program, &self.argv, env);
        }
        let path = env
            .iter()
            .find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="));
        let path = path.unwrap_or(PATH.as_bytes().strip_prefix(b"PATH=").unwrap_or_default());
        let mut verdict = Errno::NOENT;
        for directory in path
            .split(|byte| *byte == b':')
            .filter(|dir| dir.starts_with(b"/"))
        {
            let file = [directory, b"/", program.as_bytes()].concat();
            let Ok(file) = CString::new(file) else {
                continue;
            };
            match raw::execve(&file, &self.argv, env) {
                Errno::NOENT | Errno::NOTDIR => {}
                Errno::ACCESS => verdict = Errno::ACCESS,
                errno => return errno,
            }
        }
        verdict
    }
}

/// C strings of strings.
pub(crate) fn c_strings<S: AsRef<str>>(strings: &[S]) -> Result<Vec<CString>, Error> {
    strings
        .iter()
        .map(|string| {
            CString::new(string.as_ref()).map_err(|_| {
                Error::Invalid(format!("{:?} contains a NUL character", string.as_ref()))
            })
        })
        .collect()
}

/// `base` with `added`, which replaces variables of the same name.
pub(crate) fn environment(base: &[String], added: &[String]) -> Result<Vec<CString>, Error> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    if let Some(bad) = added
        .iter()
        .find(|entry| entry.find('=').is_none_or(|at| at == 0))
    {
        return Err(Error::Invalid(format!(
            "{bad:?} is not of the form NAME=value"
        )));
    }
    let kept = base
        .iter()
        .filter(|entry| !added.iter().any(|new| name(new) == name(entry)));
    c_strings(&kept.chain(added).collect::<Vec<_>>())
}

/// Sheds what the engine's process handed down. Early: while `/proc/self` is
/// still the engine's to write.
pub(crate) fn shed_inheritance(oom_score_adj: Option<i16>) -> Result<(), Failure> {
    let failed = |errno| (Step::Inherit, errno);
    raw::default_signals();
    rustix::process::umask(rustix::fs::Mode::empty());
    raw::new_session_keyring();
    if let Some(score) = oom_score_adj {
        std::fs::write("/proc/self/oom_score_adj", score.to_string())
            .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    }
    Ok(())
}

/// Dies with the engine's process, which alone could tell a reboot from a
/// halt. To be called after the last change of credentials, which undoes it.
pub(crate) fn die_with_engine() -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|errno| (Step::Inherit, errno))
}

/// Bounds capabilities, and installs the system call filter.
pub(crate) fn confine(filter: &[libc::sock_filter]) -> Result<(), Failure> {
    // Without these, systemd does without auditing, which is the machine's.
    let audit = [
        CapabilitySet::AUDIT_CONTROL,
        CapabilitySet::AUDIT_READ,
        CapabilitySet::AUDIT_WRITE,
    ];
    for capability in audit {
        remove_capability_from_bounding_set(capability)
            .map_err(|errno| (Step::Capabilities, errno))?;
    }
    raw::install_filter(filter).map_err(|errno| (Step::Seccomp, errno))
}

/// Opens the slave side of a terminal.
pub(crate) fn slave_of(master: impl AsFd) -> Result<OwnedFd, Errno> {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    ioctl_tiocgptpeer(master, flags)
}

/// A terminal's size as the kernel takes it.
pub(crate) fn window_size(size: Terminal) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Makes a new terminal's master ready for use; returns its slave, which
/// belongs to `owner` (user and group) when one is given.
pub(crate) fn open_terminal(
    master: &OwnedFd,
    size: Terminal,
    owner: Option<(u32, u32)>,
) -> Result<OwnedFd, Errno> {
    use rustix::fs::{Gid, Uid, fchown};
    rustix::pty::unlockpt(master)?;
    let slave = slave_of(master)?;
    if let Some((user, group)) = owner {
        fchown(
            &slave,
            Some(Uid::from_raw(user)),
            Some(Gid::from_raw(group)),
        )?;
    }
    rustix::termios::tcsetwinsize(master, window_size(size))?;
    Ok(slave)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_variables_replace() {
        let base = ["PATH=/bin".to_owned(), "HOME=/root".to_owned()];
        let env = environment(&base, &["HOME=/x".to_owned(), "A=".to_owned()]).unwrap();
        let env: Vec<_> = env.iter().map(|entry| entry.to_str().unwrap()).collect();
        assert_eq!(env, ["PATH=/bin", "HOME=/x", "A="]);
        for bad in ["A", "=x", "A=\0"] {
            assert!(environment(&base, &[bad.to_owned()]).is_err());
        }
    }

    #[test]
    fn a_launch_has_a_program() {
        assert!(Launch::new(&[], Streams::Inherit).is_err());
        assert!(Launch::new(&["a\0".to_owned()], Streams::Inherit).is_err());
        assert_eq!(
            Launch::new(&["sh".to_owned()], Streams::Inherit)
                .unwrap()
                .program(),
            "sh"
        );
    }
}

//! How a process is started in a VPS that runs, or beside all of them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use super::engine::TTY;
use super::handshake::{self, Outcome};
use super::launch::{self, Launch, Streams, c_strings, environment};
use super::process::{reap, settle};
use super::raw::{self, Cloned};
use super::session::{self, Place};
use super::{Engine, Error, Io, Process, Running, Vps};
use crate::protocol::Exec;

/// What was tried when a cgroup refuses a session.
const JOIN: &str = "start a session in";

impl Engine {
    /// Starts a process in a running VPS; returns when it has been executed.
    /// `exec.target` and `exec.terminal` are not looked at: `io` says.
    ///
    /// # Errors
    /// As for [`Self::start`]; a user that the VPS does not know.
    pub fn exec(
        &self,
        vps: &Vps,
        running: &Running,
        exec: &Exec,
        io: &Io<'_>,
    ) -> Result<Process, Error> {
        let name = vps.name();
        let failed = || Error::system("open terminal in VPS", name);
        let (master, slave) = match io {
            Io::Terminal(size) => {
                let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
                let master = openat(&running.terminals, "ptmx", flags, Mode::empty());
                let master = master.map_err(failed())?;
                let base = vps.ids.base();
                let owner = Some((base, base + TTY));
                let slave = launch::open_terminal(&master, *size, owner).map_err(failed())?;
                (Some(master), Some(slave))
            }
            Io::Inherit | Io::Files(_) => (None, None),
        };
        let session = |streams, cgroup| {
            let place = Place::Vps {
                init: running.init.pidfd.as_fd(),
                filter: &self.filter,
            };
            start(
                &format!("VPS {name}"),
                place,
                Some(cgroup),
                self.oom_score_adj,
                exec,
                streams,
            )
        };
        let payload = self.cgroups.open(name)?;
        match session(Streams::new(io, slave), payload.as_fd()) {
            // Its init has divided the payload and moved: go where it went.
            Err(Error::System {
                op: JOIN,
                errno: Errno::BUSY | Errno::OPNOTSUPP,
                ..
            }) => {
                let own = self.cgroups.of_process(name, running.init.pid)?;
                let slave = master.as_ref().map(launch::slave_of).transpose();
                session(Streams::new(io, slave.map_err(failed())?), own.as_fd())
            }
            result => result,
        }
        .map(|process| Process {
            terminal: master,
            ..process
        })
    }
}

/// Where a process outside of all VPSs is started.
#[derive(Debug)]
pub(crate) struct Beside<'a> {
    /// The mount namespace; `None` is the caller's own.
    pub(crate) root: Option<BorrowedFd<'a>>,
    /// The cgroup; `None` is the caller's own.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// Its `oom_score_adj`; `None` is the caller's own.
    pub(crate) oom_score_adj: Option<i16>,
}

/// Starts a process outside of all VPSs and returns when it has been executed.
/// The terminal, if it is to have one, is `slave`.
///
/// # Errors
/// As for [`Engine::exec`].
pub(crate) fn exec_beside(
    beside: &Beside<'_>,
    exec: &Exec,
    io: &Io<'_>,
    slave: Option<OwnedFd>,
) -> Result<Process, Error> {
    let &Beside {
        root,
        cgroup,
        oom_score_adj,
    } = beside;
    let place = Place::Machine { root };
    let streams = Streams::new(io, slave);
    start("the machine", place, cgroup, oom_score_adj, exec, streams)
}

fn start(
    name: &str,
    place: Place<'_>,
    cgroup: Option<BorrowedFd<'_>>,
    oom_score_adj: Option<i16>,
    exec: &Exec,
    streams: Streams,
) -> Result<Process, Error> {
    let launch = Launch::new(&exec.argv, streams)?;
    let cwd = c_strings(exec.cwd.as_slice())?;
    // Checked here, where an error has words.
    environment(&[], &exec.env)?;
    let plan = session::Plan {
        place,
        user: exec.user.as_deref(),
        cwd: cwd.first(),
        env: &exec.env,
        oom_score_adj,
        launch: &launch,
    };
    let (engine, newcomer) =
        handshake::pair().map_err(Error::system("make sockets for a session in", name))?;
    let cloned = raw::clone3(0, cgroup, false).map_err(Error::system(JOIN, name))?;
    let Cloned::Parent { pid, pidfd } = cloned else {
        drop(engine);
        raw::end(|| match session::run(&plan, &newcomer) {
            Err((step, errno)) => newcomer.fail(step, errno),
        })
    };
    drop(newcomer);
    let outcome = engine.outcome();
    let mut process = Process {
        pid,
        pidfd,
        terminal: None,
    };
    if let Ok(Outcome { pid: Some(pid), .. }) = outcome {
        // The usher has done its work; the session is a child of ours, and
        // cannot be anybody else before our waiter has reaped it.
        reap(&process);
        let pid_of = rustix::process::Pid::from_raw(pid)
            .ok_or_else(|| Error::Invalid(format!("a session in {name} has no PID")))?;
        let pidfd = rustix::process::pidfd_open(pid_of, rustix::process::PidfdFlags::empty())
            .map_err(Error::system("open pidfd of a session in", name))?;
        process = Process {
            pid,
            pidfd,
            terminal: None,
        };
    }
    settle(name, &launch.program(), &outcome, process).map_err(|error| error.about(exec))
}

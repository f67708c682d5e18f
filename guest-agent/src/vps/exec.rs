//! How a process is started in a VPS that runs, or beside all of them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::engine::TTY;
use super::handshake::{self, Outcome};
use super::launch::{self, Launch, Streams, c_strings, environment};
use super::process::{reap, settle};
use super::raw::{self, Cloned};
use super::{Engine, Error, Io, Process, Running, Vps, session};
use crate::protocol::Exec;

/// What was tried when a cgroup refuses a session.
const JOIN: &str = "start a session in";

/// Where a session is to be.
#[derive(Clone, Copy)]
struct Inside<'a> {
    init: Option<BorrowedFd<'a>>,
    root: Option<BorrowedFd<'a>>,
    cgroup: Option<&'a OwnedFd>,
}

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
        let (master, slave) = match io {
            Io::Terminal(size) => {
                let (base, terminals) = (vps.ids.base(), running.terminals.as_fd());
                let pair = launch::open_terminal(terminals, *size, base, base + TTY);
                let (master, slave) = pair.map_err(Error::system("open terminal in VPS", name))?;
                (Some(master), Some(slave))
            }
            Io::Inherit | Io::Files(_) => (None, None),
        };
        let payload = self.cgroups.open(name)?;
        let inside = Inside {
            init: Some(running.init.pidfd.as_fd()),
            root: None,
            cgroup: Some(&payload),
        };
        match self.join(name, &inside, exec, Streams::new(io, slave)) {
            // Its init has divided the payload and moved: go where it went.
            Err(Error::System {
                op: JOIN,
                errno: Errno::BUSY | Errno::OPNOTSUPP,
                ..
            }) => {
                let own = self.cgroups.of_process(name, running.init.pid)?;
                let inside = Inside {
                    cgroup: Some(&own),
                    ..inside
                };
                let slave = match &master {
                    None => None,
                    Some(master) => Some(
                        launch::slave_of(master.as_fd())
                            .map_err(Error::system("open terminal in VPS", name))?,
                    ),
                };
                self.join(name, &inside, exec, Streams::new(io, slave))
            }
            result => result,
        }
        .map(|process| Process {
            terminal: master,
            ..process
        })
    }

    /// Starts a process outside of all VPSs: in the directory `root` of a
    /// microVM, or in the host's own root. With [`Io::Terminal`] the terminal
    /// is one of the caller's `/dev/pts`.
    ///
    /// # Errors
    /// As for [`Self::exec`].
    pub fn exec_machine(
        &self,
        root: Option<BorrowedFd<'_>>,
        exec: &Exec,
        io: &Io<'_>,
    ) -> Result<Process, Error> {
        let (master, slave) = match io {
            Io::Terminal(size) => {
                let open = || {
                    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    let pts = openat(CWD, "/dev/pts", flags, Mode::empty())?;
                    launch::open_terminal(pts.as_fd(), *size, 0, TTY)
                };
                let (master, slave) =
                    open().map_err(Error::system("open terminal in", "/dev/pts"))?;
                (Some(master), Some(slave))
            }
            Io::Inherit | Io::Files(_) => (None, None),
        };
        let inside = Inside {
            init: None,
            root,
            cgroup: None,
        };
        let process = self.join("(the machine)", &inside, exec, Streams::new(io, slave))?;
        Ok(Process {
            terminal: master,
            ..process
        })
    }

    fn join(
        &self,
        name: &str,
        inside: &Inside<'_>,
        exec: &Exec,
        streams: Streams,
    ) -> Result<Process, Error> {
        let launch = Launch::new(&exec.argv, streams)?;
        let cwd = c_strings(exec.cwd.as_slice())?;
        // Checked here, where an error has words.
        environment(&[], &exec.env)?;
        let plan = session::Plan {
            init: inside.init,
            root: inside.root,
            user: exec.user.as_deref(),
            cwd: cwd.first(),
            env: &exec.env,
            oom_score_adj: self.oom_score_adj,
            filter: &self.filter,
            launch: &launch,
        };
        let (engine, newcomer) =
            handshake::pair().map_err(Error::system("make sockets for a session in", name))?;
        let cgroup = inside.cgroup.map(AsFd::as_fd);
        let cloned = raw::clone3(0, cgroup, false).map_err(Error::system(JOIN, name))?;
        let Cloned::Parent { pid, pidfd } = cloned else {
            drop(engine);
            raw::end(|| match session::usher(&plan, &newcomer) {
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
        settle(name, &launch.program(), &outcome, process)
    }
}

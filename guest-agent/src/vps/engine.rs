//! The engine: what the agent calls.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::time::{ClockId, clock_gettime};

use super::cgroup::{Cgroup, Cgroups};
use super::handshake::{self, Outcome};
use super::idmap::{Allocator, IdRange};
use super::launch::{self, Launch, Streams, c_strings, environment};
use super::raw::{self, Cloned};
use super::step::Step;
use super::{Error, Template, files, init, mounts, seccomp, session, template};
use crate::protocol::{Exec, Init, Terminal, Usage, VpsSpec};

/// Namespaces of every VPS; the time namespace comes with its first process.
const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP;

/// Group of terminals, in every distribution.
const TTY: u32 = 5;

/// Where an engine keeps things.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Directory on the data disk; each VPS's files are in `vps/NAME/` below
    /// it. `None`: files live in memory, as long as the VPS runs.
    pub state_dir: Option<PathBuf>,
    /// The cgroup, as a directory, below which each VPS gets `NAME/` (its
    /// limits) and `NAME/payload/` (what it sees and may divide). Made, with
    /// its controllers enabled from the hierarchy's root down, when missing.
    pub cgroup_root: PathBuf,
    /// `oom_score_adj` that processes in VPSs start with, when the agent's own
    /// is not the default.
    pub oom_score_adj: Option<i16>,
}

/// A VPS, as it is to be remembered by the caller: all that the engine needs
/// beside the files on the data disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Vps {
    /// Its definition.
    pub spec: VpsSpec,
    /// Its IDs.
    pub ids: IdRange,
    /// Its identity for its init (`container_uuid`), fixed for life.
    pub uuid: [u8; 16],
}

impl Vps {
    fn name(&self) -> &str {
        self.spec.name.as_str()
    }

    /// The identity as systemd writes it.
    fn uuid_text(&self) -> String {
        let hex: String = self.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default().to_owned();
        [
            part(0, 8),
            part(8, 12),
            part(12, 16),
            part(16, 20),
            part(20, 32),
        ]
        .join("-")
    }
}

/// Where the standard streams of a process go.
#[derive(Debug)]
pub enum Io<'a> {
    /// They stay the caller's, and so does the session; on a terminal, the
    /// process becomes its foreground job.
    Inherit,
    /// To these files: standard input, output and error.
    Files([BorrowedFd<'a>; 3]),
    /// To a new terminal of the VPS, which becomes the controlling one.
    Terminal(Terminal),
}

/// How to start a VPS.
#[derive(Debug)]
pub struct Start<'a> {
    /// Environment, `NAME=value`, added to the minimal one.
    pub env: &'a [String],
    /// Where its init's standard streams go. With [`Io::Terminal`] the
    /// terminal is its `/dev/console` too.
    pub io: Io<'a>,
}

/// A process in a VPS; a direct child of the caller.
#[derive(Debug)]
pub struct Process {
    /// Its PID as the caller sees it.
    pub pid: i32,
    /// Becomes readable when it ends.
    pub pidfd: OwnedFd,
    /// The master side of its terminal, when it has one of its own. Keep it
    /// open: closing it hangs the terminal up.
    pub terminal: Option<OwnedFd>,
}

/// A VPS that runs. Drop it once its init has been reaped.
#[derive(Debug)]
pub struct Running {
    /// Its init.
    pub init: Process,
    /// `CLOCK_BOOTTIME` of its start, in nanoseconds.
    pub started_at_ns: u64,
    /// Its devpts instance, from which terminals for sessions come.
    terminals: OwnedFd,
}

/// Partitions the kernel.
#[derive(Debug)]
pub struct Engine {
    files: Option<files::Files>,
    cgroups: Cgroups,
    /// Whether VPSs get a part of their cgroup to divide.
    delegate: bool,
    oom_score_adj: Option<i16>,
    ids: Allocator,
    filter: Vec<libc::sock_filter>,
    devices: Vec<(&'static str, u32, u32)>,
}

impl Engine {
    /// Prepares cgroups and directories.
    ///
    /// # Errors
    /// One of them can't be made: no privileges, no cgroup v2, no space.
    pub fn new(config: EngineConfig) -> Result<Self, Error> {
        Ok(Self {
            files: config
                .state_dir
                .as_deref()
                .map(files::Files::new)
                .transpose()?,
            cgroups: Cgroups::new(&config.cgroup_root)?,
            delegate: true,
            oom_score_adj: config.oom_score_adj,
            ids: Allocator::default(),
            filter: seccomp::program(),
            devices: mounts::optional_devices(),
        })
    }

    /// An engine for one VPS, in `cgroup_root` as it is: its files are in
    /// memory and its cgroup is not its own to divide.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub(crate) fn for_one(cgroup_root: &Path, spec: &VpsSpec) -> Result<Self, Error> {
        Ok(Self {
            files: None,
            cgroups: Cgroups::for_one(cgroup_root, &spec.limits)?,
            delegate: false,
            oom_score_adj: None,
            ids: Allocator::default(),
            filter: seccomp::program(),
            devices: Vec::new(),
        })
    }

    /// Makes a new VPS: its ID range, its identity, its directory.
    ///
    /// # Errors
    /// No ID range is left, or its directory exists or can't be made.
    pub fn create(&mut self, spec: VpsSpec) -> Result<Vps, Error> {
        let mut uuid = [0; 16];
        rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty()).map_err(
            Error::system("draw an identity for VPS", spec.name.as_str()),
        )?;
        let vps = Vps {
            spec,
            ids: self.ids.allocate()?,
            uuid,
        };
        if let Some(files) = &self.files {
            files
                .create(vps.name())
                .inspect_err(|_| self.ids.release(vps.ids))?;
        }
        Ok(vps)
    }

    /// Takes in a VPS that an engine made earlier, after a restart of the
    /// agent or the guest.
    ///
    /// # Errors
    /// Its ID range is taken, or its directory is gone.
    pub fn adopt(&mut self, vps: &Vps) -> Result<(), Error> {
        if let Some(files) = &self.files {
            files.open(vps.name())?;
        }
        self.ids.reserve(vps.ids)
    }

    /// Forgets a VPS that does not run and removes its files. The bulk of the
    /// work is done by a process that goes on after this returns.
    ///
    /// # Errors
    /// It still runs, or its files can't be removed.
    pub fn destroy(&mut self, vps: &Vps) -> Result<(), Error> {
        if !self.cgroups.remove(vps.name())? {
            let name = vps.name();
            return Err(Error::Invalid(format!(
                "VPS {name} has processes; stop it first"
            )));
        }
        if let Some(files) = &self.files {
            files.remove(vps.name())?;
        }
        self.ids.release(vps.ids);
        Ok(())
    }

    /// Starts a VPS and returns when its init has been executed: a few
    /// milliseconds.
    ///
    /// # Errors
    /// [`Error::CommandNotFound`] and [`Error::CommandNotExecutable`] for its
    /// init, else what failed. Nothing is left behind.
    pub fn start(
        &self,
        vps: &Vps,
        template: &Template,
        start: &Start<'_>,
    ) -> Result<Running, Error> {
        let owner = self.delegate.then_some(vps.ids);
        let cgroup = self.cgroups.create(vps.name(), &vps.spec.limits, owner)?;
        self.start_in(vps, template, start, &cgroup)
            .inspect_err(|_| {
                // Its failure matters less than the one that is being reported.
                let _ = self.cgroups.remove(vps.name());
            })
    }

    fn start_in(
        &self,
        vps: &Vps,
        template: &Template,
        start: &Start<'_>,
        cgroup: &Cgroup,
    ) -> Result<Running, Error> {
        let error = |op| Error::system(op, vps.name());
        let console = matches!(start.io, Io::Terminal(_));
        let umask = rustix::process::umask(Mode::empty());
        let dev = mounts::device_tree(&self.devices, console);
        rustix::process::umask(umask);
        let dev = dev.map_err(error("make /dev of VPS"))?;
        let tty = vps.ids.base() + TTY;
        let terminals = mounts::terminals(tty).map_err(error("make /dev/pts of VPS"))?;
        let (master, slave) = match start.io {
            Io::Terminal(size) => {
                let pair = launch::open_terminal(terminals.as_fd(), size, vps.ids.base(), tty);
                let (master, slave) = pair.map_err(error("open console of VPS"))?;
                (Some(master), Some(slave))
            }
            Io::Inherit | Io::Files(_) => (None, None),
        };
        let number = master.as_ref().map(raw::terminal_number).transpose();
        let template = template.copy()?;
        let files = match &self.files {
            None => None,
            Some(files) => {
                let directory = files.open(vps.name())?;
                Some(template::copy_tree(&directory).map_err(error("copy mount of files of VPS"))?)
            }
        };
        let launch = Launch::new(&init_command(&vps.spec), Streams::new(&start.io, slave))?;
        let env = init_environment(vps, console, start.env)?;
        let uuid = vps.uuid_text();
        let plan = init::Plan {
            template: template.as_fd(),
            files: files.as_ref().map(AsFd::as_fd),
            dev: dev.as_fd(),
            terminals: terminals.as_fd(),
            console: number.map_err(error("number console of VPS"))?,
            hostname: vps
                .spec
                .hostname
                .as_ref()
                .unwrap_or(&vps.spec.name)
                .as_str(),
            uuid: &uuid,
            oom_score_adj: self.oom_score_adj,
            filter: &self.filter,
            env: &env,
            launch: &launch,
        };
        let mapped = [
            Some(template.as_fd()),
            files.as_ref().map(AsFd::as_fd),
            Some(dev.as_fd()),
        ];

        let (engine, newcomer) = handshake::pair().map_err(error("make sockets for VPS"))?;
        let cloned = raw::clone3(NAMESPACES, Some(cgroup.payload.as_fd()), false)
            .map_err(error("make namespaces of VPS"))?;
        let Cloned::Parent { pid, pidfd } = cloned else {
            drop(engine);
            raw::end(|| match init::run(&plan, &newcomer) {
                Err((step, errno)) => newcomer.fail(step, errno),
            })
        };
        drop(newcomer);
        let started_at_ns = boot_clock();
        let prepared = map_ids(pid, vps.ids, mapped.into_iter().flatten());
        if prepared.is_ok() {
            engine.go();
        }
        let process = Process {
            pid,
            pidfd,
            terminal: master,
        };
        if let Err(error) = prepared {
            drop(engine);
            reap(&process);
            return Err(error);
        }
        let outcome = engine.outcome();
        self.settle(vps.name(), &launch.program(), outcome, process)
            .map(|init| Running {
                init,
                started_at_ns,
                terminals,
            })
    }

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
        let payload = self.cgroups.open(name)?.payload;
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
        self.settle(name, &launch.program(), outcome, process)
    }

    /// Turns what a new process reported into a process, or its error.
    fn settle(
        &self,
        name: &str,
        program: &str,
        outcome: Result<Outcome, Errno>,
        process: Process,
    ) -> Result<Process, Error> {
        let failure = match outcome {
            Ok(Outcome { failure: None, .. }) => return Ok(process),
            Ok(Outcome {
                failure: Some(failure),
                ..
            }) => failure,
            Err(errno) => (Step::Unknown, errno),
        };
        reap(&process);
        let (vps, program) = (name.to_owned(), program.to_owned());
        Err(match failure {
            (Step::Exec, Errno::NOENT | Errno::NOTDIR) => Error::CommandNotFound { vps, program },
            (Step::Exec, errno) => Error::CommandNotExecutable {
                vps,
                program,
                errno,
            },
            (step, errno) => Error::Child { vps, step, errno },
        })
    }

    /// Kills every process of a VPS.
    ///
    /// # Errors
    /// The kernel's, with the cgroup's name.
    pub fn kill(&self, vps: &Vps) -> Result<(), Error> {
        self.cgroups.kill(vps.name())
    }

    /// Clears away what is left of a VPS whose init was reaped, so that it can
    /// be started again. `Ok(false)`: processes are left (in uninterruptible
    /// sleep); try again later, a bounded number of times.
    ///
    /// # Errors
    /// The kernel's, with the cgroup's name.
    pub fn teardown(&self, vps: &Vps) -> Result<bool, Error> {
        if self.cgroups.remove(vps.name())? {
            return Ok(true);
        }
        self.cgroups.kill(vps.name())?;
        self.cgroups.remove(vps.name())
    }

    /// What a running VPS uses.
    ///
    /// # Errors
    /// It does not run.
    pub fn usage(&self, vps: &Vps) -> Result<Usage, Error> {
        self.cgroups.usage(vps.name())
    }
}

/// What was tried when a cgroup refuses a session.
const JOIN: &str = "start a session in";

/// Where a session is to be.
#[derive(Clone, Copy)]
struct Inside<'a> {
    init: Option<BorrowedFd<'a>>,
    root: Option<BorrowedFd<'a>>,
    cgroup: Option<&'a OwnedFd>,
}

/// The command of a VPS's init.
fn init_command(spec: &VpsSpec) -> Vec<String> {
    match &spec.init {
        Init::Template => vec!["/sbin/init".to_owned()],
        Init::Command(argv) => argv.clone(),
    }
}

/// The environment of a VPS's init: as systemd's container interface wants it.
fn init_environment(
    vps: &Vps,
    console: bool,
    added: &[String],
) -> Result<Vec<std::ffi::CString>, Error> {
    let mut base = vec![
        launch::PATH.to_owned(),
        "HOME=/root".to_owned(),
        format!("container={}", super::CONTAINER),
        format!("container_uuid={}", vps.uuid_text()),
    ];
    if console {
        base.push("TERM=linux".to_owned());
    }
    environment(&base, added)
}

/// Gives a new process its IDs, and maps the owners in its mounts to them.
fn map_ids<'a>(
    pid: i32,
    ids: IdRange,
    mapped: impl Iterator<Item = BorrowedFd<'a>>,
) -> Result<(), Error> {
    let error = |op| Error::system(op, format!("process {pid}"));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let process = openat(CWD, format!("/proc/{pid}"), flags, Mode::empty())
        .map_err(error("look up /proc of"))?;
    let line = ids.map_line();
    for file in ["uid_map", "gid_map"] {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&process, file, flags, Mode::empty())
            .and_then(|file| rustix::io::write(file, line.as_bytes()))
            .map_err(error("write ID maps of"))?;
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = openat(&process, "ns/user", flags, Mode::empty())
        .map_err(error("open user namespace of"))?;
    for mount in mapped {
        raw::idmap_mount(mount, namespace.as_fd()).map_err(|errno| match errno {
            Errno::INVAL => Error::Invalid(
                "the template or the data directory is on a file system that can't be ID-mapped: \
                 use one of ext4, xfs, btrfs, tmpfs or an EROFS image"
                    .into(),
            ),
            errno => error("ID-map a mount for")(errno),
        })?;
    }
    Ok(())
}

/// Waits for a process that ends by itself, or has.
fn reap(process: &Process) {
    let id = WaitId::PidFd(process.pidfd.as_fd());
    // An error means that there is nothing to reap.
    let _ = rustix::io::retry_on_intr(|| waitid(id.clone(), WaitIdOptions::EXITED));
}

/// `CLOCK_BOOTTIME` in nanoseconds.
fn boot_clock() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

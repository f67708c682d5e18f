//! The engine: what the agent calls.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use super::idmap::{Allocator, IdRange};
use super::{Error, Template};
use crate::protocol::{Exec, Terminal, Usage, VpsSpec};

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

/// Where the standard streams of a process go.
#[derive(Debug)]
pub enum Io<'a> {
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
    pub(crate) terminals: OwnedFd,
}

/// Partitions the kernel.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    ids: Allocator,
}

impl Engine {
    /// Prepares cgroups and directories.
    ///
    /// # Errors
    /// One of them can't be made: no privileges, no cgroup v2, no space.
    pub fn new(config: EngineConfig) -> Result<Self, Error> {
        Ok(Self {
            config,
            ids: Allocator::default(),
        })
    }

    /// Makes a new VPS: its ID range, its identity, its directory.
    ///
    /// # Errors
    /// No ID range is left, or its directory exists or can't be made.
    pub fn create(&mut self, spec: VpsSpec) -> Result<Vps, Error> {
        Ok(Vps {
            spec,
            ids: self.ids.allocate()?,
            uuid: [0; 16],
        })
    }

    /// Takes in a VPS that an engine made earlier, after a restart of the
    /// agent or the guest.
    ///
    /// # Errors
    /// Its ID range is taken, or its directory is gone.
    pub fn adopt(&mut self, vps: &Vps) -> Result<(), Error> {
        self.ids.reserve(vps.ids)
    }

    /// Forgets a VPS that does not run and removes its files, in a process
    /// that goes on after this returns.
    ///
    /// # Errors
    /// It still runs, or its files can't be removed.
    pub fn destroy(&mut self, vps: &Vps) -> Result<(), Error> {
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
        let _ = (&self.config, vps, template, start);
        Err(Error::Invalid("not yet".into()))
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
        let _ = (vps, running, exec, io);
        Err(Error::Invalid("not yet".into()))
    }

    /// Starts a process outside of all VPSs: in the directory `root` of a
    /// microVM, or in the host's own root.
    ///
    /// # Errors
    /// As for [`Self::exec`].
    pub fn exec_machine(
        &self,
        root: Option<BorrowedFd<'_>>,
        exec: &Exec,
        io: &Io<'_>,
    ) -> Result<Process, Error> {
        let _ = (root, exec, io);
        Err(Error::Invalid("not yet".into()))
    }

    /// Kills every process of a VPS.
    ///
    /// # Errors
    /// The kernel's, with the cgroup's name.
    pub fn kill(&self, vps: &Vps) -> Result<(), Error> {
        let _ = vps;
        Ok(())
    }

    /// Clears away what is left of a VPS whose init was reaped, so that it can
    /// be started again. `Ok(false)`: processes are left (in uninterruptible
    /// sleep); try again later, a bounded number of times.
    ///
    /// # Errors
    /// The kernel's, with the cgroup's name.
    pub fn teardown(&self, vps: &Vps) -> Result<bool, Error> {
        let _ = vps;
        Ok(true)
    }

    /// What a running VPS uses.
    ///
    /// # Errors
    /// It does not run.
    pub fn usage(&self, vps: &Vps) -> Result<Usage, Error> {
        let _ = vps;
        Ok(Usage::default())
    }
}

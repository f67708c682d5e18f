//! The engine: what the agent calls.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::cgroup::Cgroups;
use super::files::Files;
use super::identity::{self, Identity};
use super::idmap::{Allocator, IdRange};
use super::{Error, Freezer, Process, mounts, seccomp};
use crate::protocol::{Terminal, Usage, VpsSpec};

/// Group of terminals, in every distribution.
pub(crate) const TTY: u32 = 5;

/// What the names of one-shot VPSs begin with; the PID of their engine follows.
pub(crate) const ONE_SHOT: &str = "insula-run-";

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
    /// Its identity for its init (`container_uuid`), fixed for life; a copy of
    /// it in another guest [gets](Engine::renew) another one.
    pub uuid: [u8; 16],
}

impl Vps {
    pub(super) fn name(&self) -> &str {
        self.spec.name.as_str()
    }

    /// The identity as systemd writes it.
    pub(super) fn uuid_text(&self) -> String {
        Identity(self.uuid).text()
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

/// A VPS that runs. Drop it once its init has been reaped.
#[derive(Debug)]
pub struct Running {
    /// Its init.
    pub init: Process,
    /// `CLOCK_BOOTTIME` of its start, in nanoseconds.
    pub started_at_ns: u64,
    /// Its devpts instance, from which terminals for sessions come.
    pub(super) terminals: OwnedFd,
    /// What it sees as `/run/host`.
    pub(super) host: OwnedFd,
}

/// Partitions the kernel.
#[derive(Debug)]
pub struct Engine {
    pub(super) files: Option<Files>,
    pub(super) cgroups: Cgroups,
    /// Whether VPSs get a part of their cgroup to divide.
    pub(super) delegate: bool,
    pub(super) oom_score_adj: Option<i16>,
    ids: Allocator,
    pub(super) filter: Vec<libc::sock_filter>,
    pub(super) devices: Vec<(&'static str, u32, u32)>,
}

impl Engine {
    /// Prepares cgroups and directories.
    ///
    /// # Errors
    /// One of them can't be made: no privileges, no cgroup v2, no space.
    pub fn new(config: EngineConfig) -> Result<Self, Error> {
        let EngineConfig {
            state_dir,
            cgroup_root,
            oom_score_adj,
        } = config;
        Ok(Self {
            files: state_dir.as_deref().map(Files::new).transpose()?,
            cgroups: Cgroups::new(&cgroup_root)?,
            delegate: true,
            oom_score_adj,
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
        let cgroups = Cgroups::for_one(cgroup_root, &spec.limits)?;
        cgroups.sweep(ONE_SHOT);
        Ok(Self {
            files: None,
            cgroups,
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
        let Identity(uuid) = Identity::draw().map_err(Error::system(
            "draw an identity for VPS",
            spec.name.as_str(),
        ))?;
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

    /// Makes a VPS of this guest, which is a copy of another one, a machine of
    /// its own: with another identity, and if it is `running` with another one
    /// of its boot. Nothing may run in it meanwhile. The identity is in `vps`
    /// whatever else fails, and should be remembered.
    ///
    /// # Errors
    /// The kernel's, with the VPS's name.
    pub(crate) fn renew(&self, vps: &mut Vps, running: Option<&Running>) -> Result<(), Error> {
        let name = vps.name().to_owned();
        let error = |op| Error::system(op, name.as_str());
        let old = Identity(vps.uuid);
        let new = Identity::draw().map_err(error("draw an identity for VPS"))?;
        vps.uuid = new.0;
        if let Some(running) = running {
            let boot = Identity::draw().map_err(error("draw an identity for VPS"))?;
            identity::rewrite(&running.host, identity::BOOT_ID, boot)
                .and_then(|()| identity::rewrite(&running.host, identity::MACHINE_UUID, new))
                .map_err(error("renew /run/host of VPS"))?;
        }
        if let Some(files) = &self.files {
            let upper = files.upper(&name)?;
            identity::replace_machine_id(&upper, old, new)
                .map_err(error("renew /etc/machine-id of VPS"))?;
        }
        Ok(())
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

    /// What holds the processes of all VPSs.
    pub(crate) fn freezer(&self) -> Result<Freezer, rustix::io::Errno> {
        self.cgroups.freezer()
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

    /// How many processes and threads a running VPS has; `None` when it does
    /// not run, or the kernel does not count.
    pub(crate) fn tasks(&self, vps: &Vps) -> Option<u64> {
        self.cgroups.tasks(vps.name())
    }

    /// The file that changes when the kernel kills in a running VPS for want
    /// of memory.
    pub(crate) fn memory_events(&self, vps: &Vps) -> PathBuf {
        self.cgroups.memory_events(vps.name())
    }

    /// How many processes of a running VPS the kernel has killed for want of
    /// memory; `None` when it does not count.
    pub(crate) fn oom_kills(&self, vps: &Vps) -> Option<u64> {
        self.cgroups.oom_kills(vps.name())
    }

    /// What a running VPS uses.
    ///
    /// # Errors
    /// It does not run.
    pub fn usage(&self, vps: &Vps) -> Result<Usage, Error> {
        self.cgroups.usage(vps.name())
    }
}

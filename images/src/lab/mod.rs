//! The lab: an emulated host with hardware virtualization, for machines that
//! have none.
//!
//! QEMU emulates an AMD processor with SVM and nested paging; in it Debian's
//! kernel loads `kvm-amd`, and `/dev/kvm` there is ordinary KVM. The lab is
//! started by whoever needs it first, resumed from a snapshot in a fraction of
//! a second, used by any number of processes at once, and ends by itself when
//! nobody has used it for a while.
//!
//! ```no_run
//! use images::lab::{Command, Lab, LabConfig, Payload};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let progress = images::Progress::stderr();
//! let config = LabConfig::new(false, images::Cache::user()?)?;
//! let lab = Lab::ensure(&config, &progress)?;
//! let mut payload = Payload::new();
//! payload.program("target/release/insula".as_ref())?;
//! lab.sync(&mut payload)?;
//! let code = lab.run(&Command::new(["insula", "doctor"]))?;
//! # Ok(()) }
//! ```
//!
//! Two instances can run side by side: the default one, and one whose clock
//! counts instructions (`icount`), for measurements that repeat. The latter is
//! halted while nobody uses it: its clock would run ahead, and a processor
//! with it.

mod apt;
mod boot;
pub mod error;
pub mod host;
mod kept;
mod modules;
mod payload;
mod place;
mod qemu;
mod qmp;
mod session;
mod shape;
mod snapshot;
mod status;
mod transfer;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

pub use error::{LabError, Result};
pub(crate) use kept::prune;
pub use kept::{SnapshotRecord, snapshots};
pub use payload::{CACHE, PROGRAMS, Payload};
pub use session::Command;
pub use shape::Shape;
pub use status::{Status, status, stop};
pub use transfer::Synced;

use crate::cache::Cache;
use crate::error::IoContext;
use crate::packages;
use crate::programs::{self, Program};
use crate::progress::Progress;
use place::{Instance, Place};
use qemu::Files;
use qmp::{Monitor, POLL};
use shape::{Start, instance_name, variable};
use snapshot::{Snapshot, TRANSFER_SIZE};

const START_LOCK: &str = "start.lock";
const SESSIONS_LOCK: &str = "sessions.lock";
const SYNC_LOCK: &str = "sync.lock";
const INSTANCE: &str = "instance.json";

/// How long somebody else's start (which may build the image) is waited for.
const START_WAIT: Duration = Duration::from_mins(10);
/// How long a resumed lab's daemon may take to answer, if nobody says otherwise.
const RESUME_TIME: Duration = Duration::from_secs(30);
/// How long our own housekeeping commands may take in the lab.
const CHORE_TIME: Duration = Duration::from_secs(30);
/// Room for what a lab writes and what is brought in.
const DISK_MIB: u64 = 2048;
/// Minutes without use after which the lab ends.
const IDLE_MINUTES: u32 = 30;

/// What kind of lab is wanted.
#[derive(Debug, Clone)]
pub struct LabConfig {
    /// Its size, if it has to be started. A lab that runs is taken as it is.
    pub shape: Shape,
    /// Where its images are.
    pub cache: Cache,
    /// The agent's binary (static), which is the daemon of a lab that has to
    /// be started; the cache's, built if need be, when absent.
    pub agent: Option<PathBuf>,
    /// How long it stays without being used.
    pub idle: Duration,
    /// How long each step of its start may take, instead of what is ample for
    /// each on a machine that is not overloaded.
    pub patience: Option<Duration>,
}

impl LabConfig {
    /// A lab that suits this machine. `INSULA_LAB_CPUS`, `INSULA_LAB_MEMORY`
    /// (MiB), `INSULA_LAB_IDLE` (minutes) and `INSULA_LAB_TIMEOUT` (seconds for
    /// each step of its start) change what is chosen.
    ///
    /// # Errors
    /// A variable with an unusable value.
    pub fn new(icount: bool, cache: Cache) -> Result<Self> {
        let minutes = variable("INSULA_LAB_IDLE", 1, 60 * 24 * 365)?.unwrap_or(IDLE_MINUTES);
        let idle = Duration::from_mins(u64::from(minutes));
        let seconds = variable("INSULA_LAB_TIMEOUT", 1, 60 * 60)?;
        Ok(Self {
            shape: Shape::for_this_machine(icount)?,
            cache,
            agent: None,
            idle,
            patience: seconds.map(|seconds| Duration::from_secs(seconds.into())),
        })
    }

    /// The time for a step that takes at most `usual` on most machines.
    fn time(&self, usual: Duration) -> Duration {
        self.patience.unwrap_or(usual)
    }
}

/// A running lab, in use for as long as this lives.
#[derive(Debug)]
pub struct Lab {
    place: Place,
    cache: Cache,
    instance: Instance,
    /// Shared lock: tells the watchdog, and `stop`, that somebody is here.
    sessions: Option<File>,
}

impl Lab {
    /// The lab of this kind, started if it does not run. Processes that want
    /// it at once wait for one start.
    ///
    /// # Errors
    /// Packages are missing, QEMU does not start, or the lab does not come up:
    /// each with its last words.
    pub fn ensure(config: &LabConfig, progress: &Progress) -> Result<Self> {
        let place = Place::of(config.shape.instance());
        place.create()?;
        let what = "starting or stopping the lab";
        let start = place.lock(START_LOCK, false, START_WAIT, what)?;
        // After this the watchdog keeps away.
        let sessions = place.lock(SESSIONS_LOCK, true, START_WAIT, what)?;
        place.touch();
        if let Some(lab) = Self::running(&place, &config.cache, &sessions)? {
            return Ok(lab);
        }
        // Dead, or dying, or not one of ours.
        qemu::end(&place)?;
        place.clean();
        place.keep_console();
        let started = start_instance(&place, config, progress);
        if started.is_err() {
            // The first error is the one to report.
            let _ = qemu::end(&place);
            place.clean();
        }
        let mut lab = Self {
            place,
            cache: config.cache.clone(),
            instance: started?,
            sessions: Some(sessions),
        };
        lab.set_clock()?;
        lab.instance.ready = true;
        lab.place.write(INSTANCE, &lab.instance)?;
        drop(start);
        Ok(lab)
    }

    /// The lab of this kind if it runs; it is not started.
    ///
    /// # Errors
    /// It runs and does not answer.
    pub fn find(icount: bool, cache: &Cache) -> Result<Option<Self>> {
        let place = Place::of(instance_name(icount));
        if !place.alive() {
            return Ok(None);
        }
        let what = "starting or stopping the lab";
        let _start = place.lock(START_LOCK, false, START_WAIT, what)?;
        let sessions = place.lock(SESSIONS_LOCK, true, START_WAIT, what)?;
        Self::running(&place, cache, &sessions)
    }

    fn running(place: &Place, cache: &Cache, sessions: &File) -> Result<Option<Self>> {
        let Some(instance) = place.instance()? else {
            return Ok(None);
        };
        if !instance.ready {
            return Ok(None);
        }
        let sessions = sessions.try_clone().at("keep open", place.dir())?;
        let lab = Self {
            place: place.clone(),
            cache: cache.clone(),
            instance,
            sessions: Some(sessions),
        };
        let answer = lab.resume().and_then(|()| Ok(lab.connect()?.ping()?));
        match answer {
            Ok(()) => Ok(Some(lab)),
            // It was about to end.
            Err(_) if place.wait_for_end(qemu::END_TIME) => Ok(None),
            Err(error) => Err(LabError::NotUp {
                within: RESUME_TIME,
                reason: format!("{error}; 'insula lab stop' ends it"),
                log: place.last_words(),
            }),
        }
    }

    /// Its size.
    pub fn shape(&self) -> Shape {
        self.instance.shape
    }

    /// Ends the lab, and what runs in it, and gives its disk space back.
    ///
    /// # Errors
    /// QEMU cannot be ended.
    pub fn stop(self) -> Result<()> {
        let name = self.place.name();
        drop(self);
        stop(name == instance_name(true)).map(drop)
    }

    /// Lets a halted lab go on.
    fn resume(&self) -> Result<()> {
        if !self.instance.shape.icount {
            return Ok(());
        }
        let mut monitor = self.monitor()?;
        if monitor.run_state()? == "paused" {
            monitor.command("cont", &json!({}))?;
        }
        Ok(())
    }

    /// Halts a lab whose clock counts instructions when nobody else uses it.
    fn pause(&mut self) {
        drop(self.sessions.take());
        if !self.instance.shape.icount {
            return;
        }
        // An idle processor is all that an error costs.
        if let Ok(Some(_alone)) = self.place.try_lock(SESSIONS_LOCK, false)
            && let Ok(mut monitor) = self.monitor()
        {
            let _ = monitor.command("stop", &json!({}));
        }
    }

    fn monitor(&self) -> Result<Monitor> {
        let deadline = Instant::now() + CHORE_TIME;
        Monitor::connect(&self.place.monitor(), deadline, || self.place.alive())
    }

    /// A resumed lab believes that it is the day on which its snapshot was made.
    fn set_clock(&self) -> Result<()> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let command = Command::new(["date", "--set", &format!("@{:.3}", now.as_secs_f64())]);
        let set = self.capture(&command, b"", CHORE_TIME)?;
        match set.exit.shell_code() {
            0 => Ok(()),
            code => Err(LabError::Inside {
                what: "setting the clock",
                code,
                output: String::from_utf8_lossy(&set.stderr).trim().to_owned(),
            }),
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.place.touch();
        self.pause();
    }
}

/// Starts QEMU from a snapshot, which is made first if there is none.
fn start_instance(place: &Place, config: &LabConfig, progress: &Progress) -> Result<Instance> {
    packages::ensure(host::PACKAGES, "the lab", progress)?;
    config.shape.check_memory()?;
    check_disk(config.cache.root())?;
    let host = host::ensure(&config.cache, progress)?;
    let agent = match &config.agent {
        Some(path) => path.clone(),
        None => {
            programs::ensure(&config.cache, Program::Agent, progress)?.path(Program::Agent.binary())
        }
    };
    let snapshot = snapshot::ensure(place, &host, &agent, config, progress)?;
    let scratch = place.scratch(config.cache.root());
    fs::create_dir_all(&scratch).at("create the directory", &scratch)?;
    kept::claim(&scratch, place)?;
    let (root, transfer) = (scratch.join("root.qcow2"), scratch.join("transfer"));
    snapshot::overlay(&snapshot.root(), &root)?;
    snapshot::sparse(&transfer, TRANSFER_SIZE)?;
    let files = Files {
        memory: &snapshot.memory(),
        root: &root,
        transfer: &transfer,
        directory: snapshot.dir(),
    };
    let mut qemu = qemu::start(place, config, &files, Start::Snapshot)?;
    let token = snapshot.token.clone();
    let instance = Instance::new(qemu.pid, qemu.port, token, config.shape, scratch);
    // Before anything can fail, so that the next command finds what to clean.
    place.write(INSTANCE, &instance)?;
    let within = config.time(RESUME_TIME);
    load(place, &mut qemu.monitor, within)?;
    snapshot::wait_for_daemon(place, instance.port, &instance.token, within)?;
    Ok(instance)
}

fn load(place: &Place, monitor: &mut Monitor, within: Duration) -> Result<()> {
    monitor.leave_out_shared_memory()?;
    let uri = format!("exec:cat {}", Snapshot::STATE);
    monitor.command("migrate-incoming", &json!({ "uri": uri }))?;
    let deadline = Instant::now() + within;
    while monitor.run_state()? == "inmigrate" {
        if Instant::now() >= deadline {
            return Err(LabError::NotUp {
                within,
                reason: "its snapshot is still being read".to_owned(),
                log: place.last_words(),
            });
        }
        std::thread::sleep(POLL);
    }
    monitor.command("cont", &json!({})).map(drop)
}

fn check_disk(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).at("create the directory", dir)?;
    let stat = rustix::fs::statvfs(dir).at("examine the file system of", dir)?;
    let available_mib = stat.f_bavail.saturating_mul(stat.f_frsize) >> 20;
    if available_mib < DISK_MIB {
        let path = dir.to_owned();
        return Err(LabError::Disk {
            path,
            wanted_mib: DISK_MIB,
            available_mib,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_before_anything_is_written() {
        let error = LabError::Disk {
            path: "/c".into(),
            wanted_mib: 2048,
            available_mib: 7,
        };
        assert!(error.to_string().contains("INSULA_CACHE"));
        check_disk(&std::env::temp_dir()).unwrap();
    }
}

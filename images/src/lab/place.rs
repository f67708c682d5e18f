//! Where a lab instance lives, its locks, and what is recorded of it.
//!
//! ```text
//! $INSULA_LAB_DIR | /run/insula-lab (root) | $XDG_RUNTIME_DIR/insula-lab
//!   <instance>/start.lock     held while it is started or stopped
//!   <instance>/qemu.lock      held by QEMU itself (as its standard input) for
//!                             life: not held means that it is dead, however it died
//!   <instance>/sessions.lock  shared by everybody who uses the lab
//!   <instance>/sync.lock      held while the transfer disk is in use
//!   <instance>/last-used      its time is that of the last use
//!   <instance>/instance.json  PID, port, token, shape, files
//!   <instance>/payload.json   what was brought in
//!   <instance>/qmp.sock, console.log, qemu.log
//!   <instance>/console.log.1  of the last lab before this one whose console said
//!                             anything: why it crashed
//! $INSULA_CACHE/lab/running/<id>/  root and transfer disk of a running lab
//! $INSULA_CACHE/lab/snapshots/   see `snapshot`
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::Pid;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::error::{LabError, Result};
use super::shape::{Shape, instance_name};
use crate::cache::Inputs;
use crate::error::{Error, IoContext};

/// Between two attempts to take a lock.
const RETRY: Duration = Duration::from_millis(10);
/// How many of a log's last lines are shown.
const LAST_LINES: usize = 15;
/// How much of a log's end is looked at.
const TAIL_BYTES: u64 = 16 * 1024;
/// Version of the persisted files.
const VERSION: u32 = 1;

/// What is recorded of a running instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Instance {
    version: u32,
    /// QEMU's process.
    pub(super) pid: u32,
    /// Port of 127.0.0.1 that leads to the daemon.
    pub(super) port: u16,
    /// Proves the right to call the daemon.
    pub(super) token: String,
    /// Size of the emulated host.
    pub(super) shape: Shape,
    /// Directory of its disks.
    pub(super) scratch: PathBuf,
    /// When it was started, in seconds since 1970.
    pub(super) started_at: u64,
    /// Whether its start was completed.
    pub(super) ready: bool,
}

impl Instance {
    pub(super) fn new(pid: u32, port: u16, token: String, shape: Shape, scratch: PathBuf) -> Self {
        let started_at = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        Self {
            version: VERSION,
            pid,
            port,
            token,
            shape,
            scratch,
            started_at,
            ready: false,
        }
    }
}

/// The directory of one instance.
#[derive(Debug, Clone)]
pub(super) struct Place {
    dir: PathBuf,
    name: &'static str,
}

impl Place {
    /// That of the instance `name`; nothing is created.
    pub(super) fn of(name: &'static str) -> Self {
        Self {
            dir: base_dir().join(name),
            name,
        }
    }

    /// That in the directory `dir`.
    pub(super) fn at(dir: PathBuf) -> Self {
        let name = instance_name(dir.ends_with(instance_name(true)));
        Self { dir, name }
    }

    /// Creates the directory, for its owner only.
    pub(super) fn create(&self) -> Result<()> {
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir);
        Ok(made.at("create the directory", &self.dir)?)
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Directory of its disks, in a cache that other instances may use too.
    pub(super) fn scratch(&self, cache: &Path) -> PathBuf {
        let id = Inputs::new()
            .text("directory", self.dir.to_string_lossy())
            .hash();
        cache.join("lab/running").join(id.as_str())
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn monitor(&self) -> PathBuf {
        self.file("qmp.sock")
    }

    pub(super) fn console(&self) -> PathBuf {
        self.file("console.log")
    }

    /// What the console becomes when the lab is started again.
    pub(super) fn earlier_console(&self) -> PathBuf {
        self.file("console.log.1")
    }

    /// Keeps what a dead lab's console said. One that said nothing, as most do,
    /// does not take the place of one that did.
    pub(super) fn keep_console(&self) {
        let console = self.console();
        if fs::metadata(&console).is_ok_and(|meta| meta.len() > 0) {
            // Only a trace of the past: the start is worth more.
            let _ = fs::rename(console, self.earlier_console());
        }
    }

    pub(super) fn qemu_log(&self) -> PathBuf {
        self.file("qemu.log")
    }

    pub(super) fn pid_file(&self) -> PathBuf {
        self.file("qemu.pid")
    }

    /// Whether QEMU lives.
    pub(super) fn alive(&self) -> bool {
        let Ok(file) = File::open(self.file("qemu.lock")) else {
            return false;
        };
        matches!(
            flock(&file, FlockOperation::NonBlockingLockShared),
            Err(Errno::WOULDBLOCK)
        )
    }

    /// The processes that hold QEMU's lock, by their standard input: QEMU.
    pub(super) fn lock_holders(&self) -> Vec<Pid> {
        let Ok(lock) = fs::metadata(self.file("qemu.lock")) else {
            return Vec::new();
        };
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        processes
            .filter(|process| {
                fs::metadata(process.path().join("fd/0"))
                    .is_ok_and(|input| (input.dev(), input.ino()) == (lock.dev(), lock.ino()))
            })
            .filter_map(|process| Pid::from_raw(process.file_name().to_str()?.parse().ok()?))
            .collect()
    }

    /// Waits for QEMU's end.
    pub(super) fn wait_for_end(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while self.alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(RETRY);
        }
        true
    }

    /// Takes one of the locks, waiting at most `within` for it.
    pub(super) fn lock(
        &self,
        name: &str,
        shared: bool,
        within: Duration,
        what: &'static str,
    ) -> Result<File> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(file) = self.try_lock(name, shared)? {
                return Ok(file);
            }
            if Instant::now() >= deadline {
                return Err(LabError::Busy {
                    what,
                    waited: within,
                });
            }
            std::thread::sleep(RETRY);
        }
    }

    /// Takes one of the locks if nobody is in the way.
    pub(super) fn try_lock(&self, name: &str, shared: bool) -> Result<Option<File>> {
        let path = self.file(name);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .at("create the lock file", &path)?;
        let operation = if shared {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match flock(&file, operation) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
            Err(e) => Err(Error::from_errno("lock", &path, e).into()),
        }
    }

    /// What is recorded of the running instance, if there is one.
    pub(super) fn instance(&self) -> Result<Option<Instance>> {
        if !self.alive() {
            return Ok(None);
        }
        let Some(instance) = self.read::<Instance>("instance.json")? else {
            return Ok(None);
        };
        Ok((instance.version == VERSION).then_some(instance))
    }

    /// Records something, for the owner only and all at once.
    pub(super) fn write(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let path = self.file(name);
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
            file.write_all(&serde_json::to_vec_pretty(value)?)?;
            file.persist(&path)?;
            Ok(())
        };
        Ok(write().at("write", &path)?)
    }

    /// Reads what was recorded; `None` if nothing was, or by another version.
    pub(super) fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.file(name);
        match fs::read(&path) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::Io {
                action: "read",
                path,
                source: e,
            }
            .into()),
        }
    }

    /// Notes that the lab is in use now.
    pub(super) fn touch(&self) {
        // Only delays the end of an idle lab: not worth an error.
        if let Ok(file) = File::create(self.file("last-used")) {
            let _ = file.set_modified(SystemTime::now());
        }
    }

    /// When the lab was last in use.
    pub(super) fn last_used(&self) -> Option<SystemTime> {
        fs::metadata(self.file("last-used"))
            .and_then(|meta| meta.modified())
            .ok()
    }

    /// Removes what a dead instance left.
    pub(super) fn clean(&self) {
        if let Ok(Some(instance)) = self.read::<Instance>("instance.json") {
            // Only ever a directory of our own making.
            if instance.scratch.ends_with(self.scratch(Path::new(""))) {
                let _ = fs::remove_dir_all(&instance.scratch);
            }
        }
        for name in ["instance.json", "payload.json", "qmp.sock", "qemu.pid"] {
            let _ = fs::remove_file(self.file(name));
        }
    }

    /// The last lines of QEMU's messages and of the console.
    pub(super) fn last_words(&self) -> String {
        let mut words: Vec<String> = Vec::new();
        for path in [self.qemu_log(), self.console()] {
            let text = tail(&path);
            let lines: Vec<_> = text
                .lines()
                .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>())
                .filter(|line| !line.trim().is_empty())
                // The features of an EPYC that TCG lacks: always the same, never of interest.
                .filter(|line| !line.contains("TCG doesn't support requested feature"))
                .collect();
            words.extend_from_slice(&lines[lines.len().saturating_sub(LAST_LINES)..]);
        }
        if words.is_empty() {
            return format!("(nothing; see {})", self.dir.display());
        }
        words.join("\n")
    }
}

/// The directory of all instances.
fn base_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("INSULA_LAB_DIR").filter(|dir| !dir.is_empty()) {
        return std::path::absolute(&dir).unwrap_or_else(|_| dir.into());
    }
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return "/run/insula-lab".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => Path::new(&dir).join("insula-lab"),
        None => std::env::temp_dir().join(format!("insula-lab-{}", uid.as_raw())),
    }
}

fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::lab) fn place(dir: &Path) -> Place {
        Place::at(dir.to_owned())
    }

    pub(in crate::lab) const SHAPE: Shape = Shape {
        icount: false,
        cpus: 2,
        memory_mib: 2048,
    };

    #[test]
    fn a_lock_that_is_held_means_alive() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        assert!(!place.alive());
        let lock = place.lock("qemu.lock", false, Duration::ZERO, "x").unwrap();
        assert!(place.alive());
        assert!(!place.wait_for_end(Duration::from_millis(1)));
        let error = place
            .lock("qemu.lock", false, Duration::ZERO, "testing")
            .unwrap_err();
        assert!(error.to_string().contains("testing"), "{error}");
        assert_eq!(place.lock_holders(), []);
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .stdin(lock)
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        assert_eq!((place.lock_holders(), place.alive()), (vec![pid], true));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!place.alive() && place.wait_for_end(Duration::ZERO));
    }

    #[test]
    fn what_is_recorded_counts_only_while_qemu_lives() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let scratch = place.scratch(dir.path());
        fs::create_dir_all(&scratch).unwrap();
        let instance = Instance::new(1, 2, "t".into(), SHAPE, scratch.clone());
        place.write("instance.json", &instance).unwrap();
        assert_eq!(place.instance().unwrap(), None);
        let lock = place.lock("qemu.lock", false, Duration::ZERO, "x").unwrap();
        assert_eq!(place.instance().unwrap(), Some(instance));
        drop(lock);
        place.clean();
        assert!(!scratch.exists() && !place.file("instance.json").exists());
    }

    #[test]
    fn a_foreign_directory_is_not_cleaned() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let foreign = dir.path().join("precious");
        fs::create_dir(&foreign).unwrap();
        let instance = Instance::new(1, 2, "t".into(), SHAPE, foreign.clone());
        place.write("instance.json", &instance).unwrap();
        place.clean();
        assert!(foreign.exists());
    }

    #[test]
    fn a_console_is_kept_until_another_said_something() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        for (said, kept) in [("panic", "panic"), ("", "panic"), ("oops", "oops")] {
            fs::write(place.console(), said).unwrap();
            place.keep_console();
            assert_eq!(fs::read_to_string(place.earlier_console()).unwrap(), kept);
        }
        assert!(!place.console().exists());
    }

    #[test]
    fn last_words_leave_out_what_is_always_there() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        assert!(place.last_words().contains("nothing"));
        fs::write(
            place.qemu_log(),
            "warning: TCG doesn't support requested feature: x\nbad\n",
        )
        .unwrap();
        fs::write(place.console(), "\x1b[1mpanic\r\n").unwrap();
        assert_eq!(place.last_words(), "bad\n[1mpanic");
    }
}

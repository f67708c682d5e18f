//! A booted lab, kept to start from.
//!
//! ```text
//! $INSULA_CACHE/lab/snapshots/<key>/
//!   memory      the emulated host's memory, a sparse file that later labs map privately
//!   state       processors and devices, as QEMU migrates them
//!   root.qcow2  what the boot wrote, over the image's root disk
//!   token       what the daemon in it expects in a hello
//!   shape.json  the emulated host's size
//! ```
//! The key covers everything that is in it. A lab that starts from a snapshot
//! reads no more of the memory than it uses, so that starting takes a fraction
//! of a second.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use guest_agent::client::Client;
use serde_json::json;

use super::LabConfig;
use super::boot;
use super::error::{LabError, Result};
use super::host;
use super::kept;
use super::place::Place;
use super::qemu::{self, Files};
use super::qmp::POLL;
use super::session::endpoint;
use super::shape::{Shape, Start};
use crate::cache::{Cache, Entry, InputHash, Inputs};
use crate::command::run;
use crate::error::{Error, IoContext};
use crate::packages::tool;
use crate::progress::Progress;

/// How long the emulated host may take to boot. It takes 5 s, or 20 s when
/// instructions are counted, on a machine with nothing else to do.
const BOOT_TIME: Duration = Duration::from_mins(3);
/// How long the state may take to be written.
const SAVE_TIME: Duration = Duration::from_mins(1);
/// Size of the transfer disk; its file is sparse, and empty between transfers.
pub(super) const TRANSFER_SIZE: u64 = 8 << 30;
/// Increased when a snapshot's form changes.
const FORMAT: &str = "1";

/// A snapshot.
#[derive(Debug)]
pub(super) struct Snapshot {
    dir: PathBuf,
    /// What the daemon in it expects.
    pub(super) token: String,
}

impl Snapshot {
    fn open(dir: PathBuf) -> Option<Self> {
        let token = fs::read_to_string(dir.join("token")).ok()?;
        let whole = ["memory", "state", "root.qcow2", kept::SHAPE]
            .iter()
            .all(|name| dir.join(name).is_file());
        whole.then_some(Self { dir, token })
    }

    /// Its directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its memory.
    pub(super) fn memory(&self) -> PathBuf {
        self.dir.join("memory")
    }

    /// Its root disk.
    pub(super) fn root(&self) -> PathBuf {
        self.dir.join("root.qcow2")
    }

    /// Its processors and devices, relative to its directory.
    pub(super) const STATE: &'static str = "state";
}

/// The snapshot of this host, agent and shape; made by booting if need be.
pub(super) fn ensure(
    place: &Place,
    host: &Entry,
    agent: &Path,
    config: &LabConfig,
    progress: &Progress,
) -> Result<Snapshot> {
    let (cache, shape) = (&config.cache, &config.shape);
    let version = qemu::version()?;
    let key = key(cache, host, agent, shape, &version)?;
    let parent = kept::parent(cache);
    let dir = parent.join(key.as_str());
    if let Some(snapshot) = Snapshot::open(dir.clone()) {
        // Pruning keeps the last used.
        if let Ok(token) = File::open(dir.join("token")) {
            let _ = token.set_modified(SystemTime::now());
        }
        return Ok(snapshot);
    }
    fs::create_dir_all(&parent).at("create the directory", &parent)?;
    let _lock = cache.lock(&format!("{}{key}", kept::LOCK), || {
        progress.say("waiting for another boot of the lab");
    })?;
    if let Some(snapshot) = Snapshot::open(dir.clone()) {
        return Ok(snapshot);
    }
    kept::remove_unfinished(&parent, key.as_str());
    let _ = fs::remove_dir_all(&dir);
    let temporary = tempfile::Builder::new()
        .prefix(&format!("{}{key}-", kept::UNFINISHED))
        .tempdir_in(&parent)
        .at("create a temporary directory in", &parent)?;
    let task = progress.task("booting the lab (once; later starts resume it)", None);
    let made = make(place, host, agent, config, &version, temporary.path());
    if made.is_err() {
        // Whatever the error was, it is the one to report.
        let _ = qemu::end(place);
    }
    made?;
    task.done();
    fs::rename(temporary.keep(), &dir).at("move the finished snapshot to", &dir)?;
    kept::keep_last(cache, &dir)?;
    Snapshot::open(dir.clone()).ok_or_else(|| {
        let reason = "a file is missing".to_owned();
        let cure = "run the command again";
        Error::BadFile {
            what: "lab snapshot",
            path: dir,
            reason,
            cure,
        }
        .into()
    })
}

fn key(cache: &Cache, host: &Entry, agent: &Path, shape: &Shape, qemu: &str) -> Result<InputHash> {
    // Contents, not the image's own hash: built again, it has newer packages.
    let mut inputs = Inputs::new();
    for file in &host.manifest().files {
        inputs = inputs.digest(format!("host/{}", file.path), &file.sha256);
    }
    let inputs = inputs
        .text("format", FORMAT)
        .text("system", boot::system_text())
        .digest("agent", cache.file_sha256(agent)?)
        .text("shape", shape.identity())
        .text("root", host.dir().to_string_lossy())
        .text("qemu", qemu);
    Ok(inputs.hash())
}

/// Boots the host, waits for its daemon and writes it all to `dir`.
fn make(
    place: &Place,
    host: &Entry,
    agent: &Path,
    config: &LabConfig,
    version: &str,
    dir: &Path,
) -> Result<()> {
    let shape = &config.shape;
    let file = |name: &str| dir.join(name);
    let token = random_token()?;
    let mut token_file = File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(file("token"))
        .at("create", &file("token"))?;
    token_file
        .write_all(token.as_bytes())
        .at("write", &file("token"))?;
    sparse(&file("memory"), u64::from(shape.memory_mib) << 20)?;
    sparse(&file("transfer"), TRANSFER_SIZE)?;
    overlay(&host.path(host::ROOT), &file("root.qcow2"))?;
    let initramfs = file("initramfs.cpio");
    boot::initramfs(
        &host.path(host::INITRAMFS),
        agent,
        &token,
        shape,
        version,
        &initramfs,
    )?;

    let files = Files {
        memory: &file("memory"),
        root: &file("root.qcow2"),
        transfer: &file("transfer"),
        directory: dir,
    };
    let how = Start::Boot {
        kernel: &host.path(host::KERNEL),
        initramfs: &initramfs,
    };
    let mut qemu = qemu::start(place, config, &files, how)?;
    wait_for_daemon(place, qemu.port, &token, config.time(BOOT_TIME))?;

    let monitor = &mut qemu.monitor;
    monitor.command("stop", &json!({}))?;
    monitor.leave_out_shared_memory()?;
    monitor.command(
        "migrate",
        &json!({ "uri": format!("exec:cat >{}", Snapshot::STATE) }),
    )?;
    let deadline = Instant::now() + SAVE_TIME;
    loop {
        let status = monitor.migration()?;
        match status.as_str() {
            "completed" => break,
            "failed" | "cancelled" => {
                return Err(LabError::Qemu {
                    while_what: "was being saved",
                    log: place.last_words(),
                });
            }
            _ if Instant::now() >= deadline => {
                return Err(LabError::Busy {
                    what: "saving the lab",
                    waited: SAVE_TIME,
                });
            }
            _ => std::thread::sleep(POLL),
        }
    }
    qemu.monitor.quit();
    if !place.wait_for_end(qemu::END_TIME) {
        qemu::end(place)?;
    }
    kept::describe(dir, shape)?;
    for name in ["transfer", "initramfs.cpio"] {
        fs::remove_file(file(name)).at("remove", &file(name))?;
    }
    Ok(())
}

/// Waits until the daemon answers; tells why it does not, with the console's words.
pub(super) fn wait_for_daemon(
    place: &Place,
    port: u16,
    token: &str,
    within: Duration,
) -> Result<()> {
    let deadline = Instant::now() + within;
    loop {
        // QEMU accepts connections long before there is a daemon behind them:
        // attempts are short.
        let attempt = Client::connect_within(&endpoint(port, token), Duration::from_secs(1))
            .and_then(|mut client| client.ping());
        let Err(error) = attempt else { return Ok(()) };
        if !place.alive() {
            return Err(LabError::Qemu {
                while_what: "was booting",
                log: place.last_words(),
            });
        }
        let console = place.last_words();
        if Instant::now() >= deadline || console.contains("insula-lab: failed") {
            return Err(LabError::NotUp {
                within,
                reason: error.to_string(),
                log: console,
            });
        }
        std::thread::sleep(POLL);
    }
}

/// A new qcow2 image `to` over `base`.
pub(super) fn overlay(base: &Path, to: &Path) -> Result<()> {
    let mut create = Command::new(tool("qemu-img", "qemu-utils")?);
    create
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .args([base, to]);
    run(&mut create)?;
    Ok(())
}

/// A new file of `size` bytes that takes no room.
pub(super) fn sparse(path: &Path, size: u64) -> Result<()> {
    let file = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .at("create", path)?;
    Ok(file.set_len(size).at("size", path)?)
}

fn random_token() -> Result<String> {
    let mut bytes = [0; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    filled.at("read random numbers from", Path::new("/dev/urandom"))?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_without_all_its_files_is_none() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["memory", "state", "token", kept::SHAPE] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        assert!(Snapshot::open(dir.path().to_owned()).is_none());
        fs::write(dir.path().join("root.qcow2"), "x").unwrap();
        assert_eq!(Snapshot::open(dir.path().to_owned()).unwrap().token, "x");
    }

    #[test]
    fn tokens_differ() {
        let token = random_token().unwrap();
        assert_eq!(token.len(), 32);
        assert_ne!(token, random_token().unwrap());
    }
}

//! Launching a guest.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use guest_agent::protocol::{BootConfig, Disk, DiskRole, Name};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::rand::{GetRandomFlags, getrandom};

use super::boot_segment::boot_segment;
use super::child::Child;
use super::error::{Ended, GuestError, StartFailure};
use super::ready_pipe::{Ready, wait_ready};
use super::restore::{RestoreSpec, restore};
use super::rundir::GuestDir;
use super::running::{Guest, release};
use super::spawn::{ProcessOptions, find_vmm, spawn};
use super::spec::{Drive, GuestSpec};
use super::starts_log::{self, StartKind};
use super::status::GuestRecord;
use crate::config::{
    BootArgs, BootNonce, BootSource, ConsoleConfig, DriveConfig, Drives, GuestCid, HugePages,
    InitrdPaths, MachineConfig, Readiness, ReadyTimeout, Resources, Version, VsockConfig,
};

/// How much longer than the machine process its starter waits: the process
/// itself ends a guest that is late, and knows better what to say.
const GRACE: Duration = Duration::from_secs(10);

/// Bytes of the console that are shown of a guest that did not come up.
const TAIL: usize = 4096;

/// A name that is taken and a directory that is locked, for a guest that is
/// about to start. Dropped without being started, it leaves nothing.
#[derive(Debug)]
pub struct Reservation {
    dir: GuestDir,
    lock: Option<File>,
}

impl Reservation {
    pub(super) fn new(dir: GuestDir, lock: File) -> Self {
        Self {
            dir,
            lock: Some(lock),
        }
    }

    /// The guest's directory, for files that shall live as long as the guest.
    pub fn dir(&self) -> &GuestDir {
        &self.dir
    }

    /// Starts the guest and waits until its agent has said hello. A byte to
    /// read on `interrupt` gives up.
    ///
    /// # Errors
    /// A [`GuestError`] that says why not; nothing of the guest is left then.
    pub fn start(
        self,
        spec: &GuestSpec,
        interrupt: Option<BorrowedFd<'_>>,
    ) -> Result<Guest, GuestError> {
        self.begin(StartKind::Cold, |dir, lock| {
            start(dir, lock, spec, interrupt)
        })
    }

    /// Restores the guest from a snapshot, as a machine of its own, and waits
    /// until its agent has said that it is. A byte to read on `interrupt`
    /// gives up.
    ///
    /// # Errors
    /// A [`GuestError`] that says why not; nothing of the guest is left then.
    pub fn restore(
        self,
        spec: &RestoreSpec,
        interrupt: Option<BorrowedFd<'_>>,
    ) -> Result<Guest, GuestError> {
        self.begin(StartKind::Restored, |dir, lock| {
            restore(dir, lock, spec, interrupt)
        })
    }

    fn begin(
        mut self,
        kind: StartKind,
        launch: impl FnOnce(&GuestDir, &File) -> Result<Guest, GuestError>,
    ) -> Result<Guest, GuestError> {
        let Some(lock) = self.lock.take() else {
            return Err(GuestError::NameTaken {
                name: self.dir.name().clone(),
            });
        };
        let requested = Instant::now();
        let started = launch(&self.dir, &lock);
        match &started {
            Ok(_) => starts_log::note(self.dir.name(), kind, requested.elapsed()),
            Err(_) => self.lock = Some(lock), // so that dropping us removes the directory
        }
        started
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.lock.take().is_some() {
            // An error here has nobody to go to; the next command tries again.
            let _ = release(&self.dir);
        }
    }
}

fn start(
    dir: &GuestDir,
    lock: &File,
    spec: &GuestSpec,
    interrupt: Option<BorrowedFd<'_>>,
) -> Result<Guest, GuestError> {
    check_files(dir.name(), spec)?;
    let nonce = random()?;
    write_private(
        &dir.boot_segment_path(),
        &boot_segment(&boot_config(dir, spec, nonce)),
    )?;
    let config = machine_config(dir, spec, nonce).map_err(|reason| GuestError::Invalid {
        name: dir.name().clone(),
        reason,
    })?;
    write_private(&dir.config_path(), config.to_json().as_bytes())?;
    let record = serde_json::to_vec(&record(spec)).unwrap_or_default();
    write_private(&dir.record_path(), &record)?;

    let mut process = ProcessOptions {
        ephemeral: spec.ephemeral,
        ..ProcessOptions::default()
    };
    if spec.profile {
        process.arguments = vec!["--profile".into(), dir.profile_path().into()];
    }
    run(dir, lock, spec.ready_timeout, &process, interrupt)
}

/// Spawns the machine process of a guest whose directory is complete, and
/// waits until the guest is ready.
pub(super) fn run(
    dir: &GuestDir,
    lock: &File,
    ready_timeout: ReadyTimeout,
    process: &ProcessOptions,
    interrupt: Option<BorrowedFd<'_>>,
) -> Result<Guest, GuestError> {
    let (ready, ready_child) = pipe_with(PipeFlags::CLOEXEC)
        .map_err(|source| GuestError::io("make", Path::new("a pipe"), source))?;
    let child = spawn(&find_vmm(), dir, lock.as_fd(), ready_child.as_fd(), process)?;
    drop(ready_child);
    let mut starting = Starting { child: Some(child) };

    let patience = Duration::from_millis(u64::from(ready_timeout.get())) + GRACE;
    match wait_ready(&File::from(ready), patience, interrupt) {
        Ready::Yes(spans) => match starting.child.take() {
            Some(child) => Ok(Guest::new(dir.clone(), child, process.ephemeral, spans)),
            None => Err(start_failure(dir, Ended::Vmm, String::new())),
        },
        Ready::Interrupted => Err(GuestError::Interrupted {
            name: dir.name().clone(),
        }),
        Ready::Late => {
            drop(starting);
            let message = format!(
                "not ready within {} ms: it took no notice of its own time limit",
                patience.as_millis()
            );
            Err(start_failure(dir, Ended::NeverReady, message))
        }
        Ready::No(message) => {
            let ended = starting.end();
            Err(start_failure(dir, ended, message))
        }
    }
}

/// A machine process that is killed when its start comes to nothing.
struct Starting {
    child: Option<Child>,
}

impl Starting {
    /// Waits for the process, which has said or shown that it is about to end.
    fn end(&mut self) -> Ended {
        let Some(mut child) = self.child.take() else {
            return Ended::Vmm;
        };
        let end = Instant::now() + GRACE;
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return ended(status),
                Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(2)),
                _ => {
                    kill(&mut child);
                    return Ended::Vmm;
                }
            }
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill(&mut child);
        }
    }
}

/// Kills and reaps. Both fail only for a process that is gone.
pub(super) fn kill(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// How a machine process ended, from what `wait` says.
pub(super) fn ended(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::from_exit_code(code as u8),
        (None, Some(signal)) => Ended::Signal(signal as u8),
        (None, None) => Ended::Vmm,
    }
}

fn start_failure(dir: &GuestDir, ended: Ended, said: String) -> GuestError {
    let message = if said.is_empty() {
        let log = dir.vmm_log_tail(TAIL);
        if log.is_empty() {
            ended.to_string()
        } else {
            format!("{ended}: {log}")
        }
    } else if ended == Ended::NeverReady && !said.contains("not ready") {
        format!("not ready in time: {said}")
    } else {
        said
    };
    GuestError::Start {
        name: dir.name().clone(),
        failure: StartFailure {
            ended,
            message,
            console: dir.console_tail(TAIL),
        },
    }
}

/// Names a file that is not there before a process is started to find out.
fn check_files(name: &Name, spec: &GuestSpec) -> Result<(), GuestError> {
    let kernel = [("the kernel", &spec.kernel)];
    let initrds = spec.initrds.iter().map(|path| ("the initramfs", path));
    let drives = spec.drives.iter().map(|drive| match drive.role {
        DiskRole::Template(_) => ("the template", &drive.path),
        DiskRole::Data => ("the data disk", &drive.path),
    });
    for (what, path) in kernel.into_iter().chain(initrds).chain(drives) {
        let opened = File::open(path).and_then(|file| {
            if file.metadata()?.is_dir() {
                return Err(io::Error::from(ErrorKind::IsADirectory));
            }
            Ok(())
        });
        if let Err(source) = opened {
            return Err(GuestError::Missing {
                name: name.clone(),
                what,
                path: path.clone(),
                source,
            });
        }
    }
    Ok(())
}

fn boot_config(dir: &GuestDir, spec: &GuestSpec, nonce: [u8; 16]) -> BootConfig {
    BootConfig {
        nonce,
        hostname: spec.hostname.as_ref().unwrap_or(dir.name()).clone(),
        disks: spec
            .drives
            .iter()
            .map(|drive| Disk {
                role: drive.role.clone(),
            })
            .collect(),
        wall_clock_ns: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64),
        machine_root: spec.machine_root.clone(),
    }
}

fn machine_config(
    dir: &GuestDir,
    spec: &GuestSpec,
    nonce: [u8; 16],
) -> Result<MachineConfig, String> {
    let mut initrds = spec.initrds.clone();
    initrds.push(dir.boot_segment_path());
    let drives = spec
        .drives
        .iter()
        .enumerate()
        .map(drive_config)
        .collect::<Vec<_>>();
    Ok(MachineConfig {
        host_kvm: spec.host_kvm,
        version: Version::CURRENT,
        machine: Resources {
            vcpu_count: spec.vcpus,
            mem_size_mib: spec.memory,
            huge_pages: HugePages::default(),
        },
        boot_source: BootSource {
            kernel_image_path: spec.kernel.clone(),
            boot_args: BootArgs::try_from(spec.boot_args())?,
            initrd_paths: InitrdPaths::try_from(initrds)?,
        },
        drives: Drives::try_from(drives)?,
        vsock: Some(VsockConfig {
            guest_cid: GuestCid::DEFAULT,
            uds_path: dir.vsock_path(),
        }),
        console: Some(ConsoleConfig {
            log_path: dir.console_path(),
        }),
        readiness: Some(Readiness {
            ready_timeout_ms: spec.ready_timeout,
            boot_nonce: BootNonce::new(nonce),
        }),
    })
}

/// The serial number tells a drive apart in the guest: role and place.
fn drive_config((index, drive): (usize, &Drive)) -> DriveConfig {
    let (kind, is_read_only) = match drive.role {
        DiskRole::Template(_) => ("template", true),
        DiskRole::Data => ("data", false),
    };
    DriveConfig {
        drive_id: format!("{kind}-{index}"),
        path_on_host: drive.path.clone(),
        is_read_only,
    }
}

fn record(spec: &GuestSpec) -> GuestRecord {
    GuestRecord {
        vcpus: spec.vcpus.get(),
        memory_bytes: spec.memory.bytes(),
        templates: spec
            .drives
            .iter()
            .filter_map(|drive| match &drive.role {
                DiskRole::Template(name) => Some(name.to_string()),
                DiskRole::Data => None,
            })
            .collect(),
        machine_root: spec.machine_root.as_ref().map(Name::to_string),
        huge_pages: false,
        ephemeral: spec.ephemeral,
        started_at: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
    }
}

/// Bytes that nobody else has, for nonces and identifiers.
pub(super) fn random<const N: usize>() -> Result<[u8; N], GuestError> {
    let mut bytes = [0; N];
    // So few come whole (getrandom(2)).
    getrandom(&mut bytes, GetRandomFlags::empty())
        .map_err(|source| GuestError::io("draw a nonce from", Path::new("getrandom"), source))?;
    Ok(bytes)
}

/// Writes a file that only its owner can read: the nonce is a secret.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), GuestError> {
    let written = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(bytes));
    written.map_err(|source| {
        // Half a file is of no use to anybody; a full disk is why it is one.
        let _ = fs::remove_file(path);
        GuestError::io("write", path, source)
    })
}

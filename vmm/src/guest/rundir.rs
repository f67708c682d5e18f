//! Where guests live: one directory each.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use guest_agent::protocol::Name;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::error::{Ended, GuestError};
use super::launch::Reservation;
use super::process;
use super::status::{GuestRecord, GuestState, GuestStatus, VmmStatus};

/// Names the directory of all guests, in place of the user's own.
pub const RUN_ENV: &str = "INSULA_RUN";

/// The directory of all guests of a user.
#[derive(Debug, Clone)]
pub struct RunRoot {
    path: PathBuf,
}

impl RunRoot {
    /// The user's: `$INSULA_RUN`, else `/run/insula` for root, else
    /// `$XDG_RUNTIME_DIR/insula`, else `/tmp/insula-UID`.
    ///
    /// # Errors
    /// When the directory can't be made, or belongs to somebody else.
    pub fn for_user() -> Result<Self, GuestError> {
        let user = rustix::process::geteuid();
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let path = if let Some(path) = set(RUN_ENV) {
            PathBuf::from(path)
        } else if user.is_root() {
            PathBuf::from("/run/insula")
        } else if let Some(path) = set("XDG_RUNTIME_DIR") {
            PathBuf::from(path).join("insula")
        } else {
            std::env::temp_dir().join(format!("insula-{}", user.as_raw()))
        };
        Self::at(path)
    }

    /// This directory, which is made when it is not there.
    ///
    /// # Errors
    /// When it can't be made, or belongs to somebody else, who could swap
    /// what is in it.
    pub fn at(path: PathBuf) -> Result<Self, GuestError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|source| GuestError::io("make the run directory", &path, source))?;
        let owner = fs::symlink_metadata(&path)
            .map_err(|source| GuestError::io("read the run directory", &path, source))?
            .uid();
        if owner != rustix::process::geteuid().as_raw() {
            let source = io::Error::new(
                ErrorKind::PermissionDenied,
                format!("it belongs to user {owner}; set {RUN_ENV} to a directory of your own"),
            );
            return Err(GuestError::io("use the run directory", &path, source));
        }
        Ok(Self { path })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes a name for a guest that is about to start. What a dead guest of
    /// that name left is removed.
    ///
    /// # Errors
    /// [`GuestError::NameTaken`] when a guest of that name lives.
    pub fn reserve(&self, name: &Name) -> Result<Reservation, GuestError> {
        let _guard = self.guard()?;
        let dir = self.dir(name);
        if dir.exists() {
            if dir.is_alive()? {
                return Err(GuestError::NameTaken { name: name.clone() });
            }
            dir.remove()?;
        }
        DirBuilder::new()
            .mode(0o700)
            .create(&dir.path)
            .map_err(|source| GuestError::io("make", &dir.path, source))?;
        let path = dir.lock_path();
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| GuestError::io("make", &path, source))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|source| GuestError::io("lock", &path, source))?;
        Ok(Reservation::new(dir, lock))
    }

    /// All guests, dead ones included, by name.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn guests(&self) -> Result<Vec<GuestDir>, GuestError> {
        let failed = |source| GuestError::io("read", &self.path, source);
        let mut guests = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some(name) = entry
                .file_name()
                .to_str()
                .and_then(|name| Name::new(name).ok())
            else {
                continue; // not a guest: the guard, say
            };
            guests.push(self.dir(&name));
        }
        guests.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(guests)
    }

    /// The names of the guests that live.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn living(&self) -> Result<Vec<Name>, GuestError> {
        let mut names = Vec::new();
        for guest in self.guests()? {
            if guest.is_alive()? {
                names.push(guest.name);
            }
        }
        Ok(names)
    }

    /// The guest of that name, dead or alive.
    ///
    /// # Errors
    /// [`GuestError::NotFound`] says which there are.
    pub fn find(&self, name: &Name) -> Result<GuestDir, GuestError> {
        let dir = self.dir(name);
        if dir.exists() {
            Ok(dir)
        } else {
            Err(GuestError::NotFound {
                name: name.clone(),
                running: self.living()?,
            })
        }
    }

    /// The guest of that name, which lives.
    ///
    /// # Errors
    /// [`GuestError::NotFound`], or [`GuestError::Dead`] for one that ended.
    pub fn find_living(&self, name: &Name) -> Result<GuestDir, GuestError> {
        let dir = self.find(name)?;
        if dir.is_alive()? {
            Ok(dir)
        } else {
            Err(GuestError::Dead {
                name: name.clone(),
                ended: dir.ended(),
            })
        }
    }

    /// Removes what a dead guest left.
    ///
    /// # Errors
    /// [`GuestError::NameTaken`] when it lives after all.
    pub fn clean(&self, dir: &GuestDir) -> Result<(), GuestError> {
        let _guard = self.guard()?;
        if !dir.exists() {
            return Ok(());
        }
        if dir.is_alive()? {
            return Err(GuestError::NameTaken {
                name: dir.name.clone(),
            });
        }
        dir.remove()
    }

    /// Removes what guests left that were killed before they could say how
    /// they ended, and returns their names. A guest that ended in another way
    /// keeps its directory, for its logs, until it is stopped or started.
    ///
    /// # Errors
    /// When a directory can't be read or removed.
    pub fn sweep(&self) -> Result<Vec<Name>, GuestError> {
        let mut swept = Vec::new();
        for dir in self.guests()? {
            if !dir.is_alive()? && dir.ended().is_none() {
                match self.clean(&dir) {
                    Ok(()) => swept.push(dir.name),
                    // Somebody started it anew between the two looks.
                    Err(GuestError::NameTaken { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(swept)
    }

    fn dir(&self, name: &Name) -> GuestDir {
        GuestDir {
            name: name.clone(),
            path: self.path.join(name.as_str()),
            root: self.clone(),
        }
    }

    /// Held while a directory comes or goes, so that nobody takes one that is
    /// not locked yet for one that a dead guest left.
    fn guard(&self) -> Result<File, GuestError> {
        let path = self.path.join(".lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| GuestError::io("make", &path, source))?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|source| GuestError::io("lock", &path, source))?;
        Ok(file)
    }
}

/// The directory of one guest.
#[derive(Debug, Clone)]
pub struct GuestDir {
    name: Name,
    path: PathBuf,
    root: RunRoot,
}

impl GuestDir {
    /// The guest's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that it is in.
    pub fn root(&self) -> &RunRoot {
        &self.root
    }

    /// Locked as long as the guest lives.
    pub fn lock_path(&self) -> PathBuf {
        self.path.join("lock")
    }

    /// What the machine is made of, for `insula-vmm`.
    pub fn config_path(&self) -> PathBuf {
        self.path.join("machine.json")
    }

    /// The initramfs segment with the boot configuration.
    pub fn boot_segment_path(&self) -> PathBuf {
        self.path.join("boot.cpio")
    }

    /// The serial console's output.
    pub fn console_path(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// What `insula-vmm` says.
    pub fn vmm_log_path(&self) -> PathBuf {
        self.path.join("vmm.log")
    }

    /// The hybrid vsock socket.
    pub fn vsock_path(&self) -> PathBuf {
        self.path.join("vsock.sock")
    }

    /// The socket on which `insula-vmm` serves profiles.
    pub fn profile_socket_path(&self) -> PathBuf {
        self.path.join("profile.sock")
    }

    /// The socket on which `insula-vmm` takes orders.
    pub fn control_path(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// The profile of the boot, of a guest that was started with one.
    pub fn profile_path(&self) -> PathBuf {
        self.path.join("profile.json")
    }

    /// The directory for disks of its own.
    pub fn disks_path(&self) -> PathBuf {
        self.path.join("disks")
    }

    /// What the starter knew of it.
    pub fn record_path(&self) -> PathBuf {
        self.path.join("guest.json")
    }

    /// What `insula-vmm` says of itself.
    pub fn status_path(&self) -> PathBuf {
        self.path.join("status.json")
    }

    /// Whether the directory is there.
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Whether its process, or whoever is starting it, lives.
    ///
    /// # Errors
    /// When the lock can't be looked at.
    pub fn is_alive(&self) -> Result<bool, GuestError> {
        let path = self.lock_path();
        let lock = match File::open(&path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(GuestError::io("open", &path, source)),
        };
        // Shared, so that two who look at once do not see each other.
        match flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(source) => Err(GuestError::io("look at the lock", &path, source)),
        }
    }

    /// The guest's process, while there is one.
    pub fn pid(&self) -> Option<u32> {
        process::find(
            &self.path,
            VmmStatus::read(&self.status_path()).and_then(|s| s.pid),
        )
    }

    /// How the machine ended, if it could still say so.
    pub fn ended(&self) -> Option<Ended> {
        VmmStatus::read(&self.status_path())?
            .exit_code()
            .map(Ended::from_exit_code)
    }

    /// Checks that the guest does not stand still: nobody in it would answer.
    ///
    /// # Errors
    /// [`GuestError::Paused`].
    pub fn check_running(&self) -> Result<(), GuestError> {
        if self.is_paused() {
            return Err(GuestError::Paused {
                name: self.name.clone(),
            });
        }
        Ok(())
    }

    /// Whether the machine says that it stands still.
    pub fn is_paused(&self) -> bool {
        VmmStatus::read(&self.status_path()).is_some_and(|status| status.is_paused())
    }

    /// How the guest is now.
    ///
    /// # Errors
    /// When its lock can't be looked at.
    pub fn status(&self) -> Result<GuestStatus, GuestError> {
        let alive = self.is_alive()?;
        let vmm = VmmStatus::read(&self.status_path());
        let ended = vmm
            .as_ref()
            .and_then(VmmStatus::exit_code)
            .map(Ended::from_exit_code);
        let state = match (alive, &vmm) {
            (true, Some(vmm)) if vmm.is_ready() => GuestState::Running,
            (true, Some(vmm)) if vmm.is_paused() => GuestState::Paused,
            (true, _) => GuestState::Starting,
            (false, _) => GuestState::Dead,
        };
        Ok(GuestStatus {
            name: self.name.to_string(),
            state,
            pid: if alive { self.pid() } else { None },
            ended: ended.map(|ended| ended.to_string()),
            exit_code: ended.map(Ended::exit_code),
            start: vmm.as_ref().map(VmmStatus::start),
            spans: vmm.map(VmmStatus::into_spans).unwrap_or_default(),
            record: GuestRecord::read(&self.record_path()),
            directory: self.path.clone(),
        })
    }

    /// The last lines of the console, of at most `limit` bytes. What a guest
    /// printed is not trusted: control characters are left out.
    pub fn console_tail(&self, limit: usize) -> String {
        tail(&self.console_path(), limit)
    }

    /// The last lines of what `insula-vmm` said, of at most `limit` bytes.
    pub fn vmm_log_tail(&self, limit: usize) -> String {
        tail(&self.vmm_log_path(), limit)
    }

    /// Removes the directory. Under the guard only.
    fn remove(&self) -> Result<(), GuestError> {
        match fs::remove_dir_all(&self.path) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(GuestError::io("remove", &self.path, source))
            }
            _ => Ok(()),
        }
    }
}

fn tail(path: &Path, limit: usize) -> String {
    let Ok(bytes) = fs::read(path) else {
        return String::new();
    };
    let mut last = &bytes[bytes.len().saturating_sub(limit)..];
    if last.len() < bytes.len() {
        // Whole lines only.
        let cut = last
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        last = &last[cut..];
    }
    let text = String::from_utf8_lossy(last);
    let clean: String = text
        .chars()
        .filter(|c| !c.is_control() || *c == '\n' || *c == '\t')
        .collect();
    clean.trim().to_owned()
}

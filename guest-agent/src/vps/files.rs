//! The private files of VPSs on the data disk.
//!
//! ```text
//! STATE/vps/NAME/lower   where the template is mounted, in the VPS's start
//!                upper   what the VPS changed, owned by 0, 33, …: IDs of the VPS
//!                work    overlay's own
//!                root    where the overlay is mounted
//!                host    what the VPS sees as /run/host, read-only
//! STATE/trash/N          on its way out
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::Error;
use super::identity::{self, Identity};
use super::mounts::{PLAIN, new_mount};
use super::raw::{self, Cloned};

/// Where an uncovered `/proc` is, in `/run/host`.
pub(crate) const PROC: &str = "proc";

/// Directories of a VPS.
const PARTS: &[&str] = &["host", "lower", "root", "upper", "work"];

/// The directory of all VPSs.
#[derive(Debug)]
pub(crate) struct Files {
    path: PathBuf,
    vps: OwnedFd,
    trash: OwnedFd,
}

impl Files {
    /// Makes the directories, and empties the trash.
    pub(crate) fn new(state: &Path) -> Result<Self, Error> {
        let make = |name: &str| {
            let path = state.join(name);
            let error = |op| Error::system(op, path.display().to_string());
            std::fs::create_dir_all(&path)
                .map_err(Error::io("make directory", path.display().to_string()))?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat(CWD, &path, flags, Mode::empty()).map_err(error("open directory"))
        };
        let files = Self {
            vps: make("vps")?,
            trash: make("trash")?,
            path: state.to_owned(),
        };
        files.empty_trash()?;
        Ok(files)
    }

    fn error(&self, op: &'static str, name: &str) -> impl FnOnce(Errno) -> Error + use<> {
        Error::system(op, self.path.join("vps").join(name).display().to_string())
    }

    /// Makes a VPS's directory.
    pub(crate) fn create(&self, name: &str) -> Result<(), Error> {
        mkdirat(&self.vps, name, Mode::from_raw_mode(0o755))
            .map_err(self.error("make directory", name))?;
        let directory = self.open(name)?;
        for part in PARTS {
            if let Err(errno) = mkdirat(&directory, *part, Mode::from_raw_mode(0o755)) {
                let _ = self.remove(name);
                return Err(self.error("fill directory", name)(errno));
            }
        }
        Ok(())
    }

    /// Opens a VPS's directory.
    pub(crate) fn open(&self, name: &str) -> Result<OwnedFd, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.vps, name, flags, Mode::empty()).map_err(self.error("open directory", name))
    }

    /// Opens the directory of what a VPS changed.
    pub(crate) fn upper(&self, name: &str) -> Result<OwnedFd, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(self.open(name)?, "upper", flags, Mode::empty())
            .map_err(self.error("open the files of", name))
    }

    /// Takes a VPS's directory away at once, and removes it in the background.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Error> {
        let mut suffix = [0u8; 8];
        rustix::rand::getrandom(&mut suffix, rustix::rand::GetRandomFlags::empty())
            .map_err(self.error("draw a name for", name))?;
        let away = format!("{:016x}", u64::from_ne_bytes(suffix));
        match rustix::fs::renameat(&self.vps, name, &self.trash, &*away) {
            Ok(()) => self.empty_trash(),
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.error("move away", name)(errno)),
        }
    }

    /// Forks a process that removes what is in the trash. It does not follow
    /// links, whatever a tenant left there.
    fn empty_trash(&self) -> Result<(), Error> {
        let trash = self.path.join("trash");
        let entries = || std::fs::read_dir(&trash).into_iter().flatten().flatten();
        if entries().next().is_none() {
            return Ok(());
        }
        let cloned = raw::clone3(0, None, false)
            .map_err(Error::system("fork to remove", trash.display().to_string()))?;
        if let Cloned::Child = cloned {
            raw::end(|| {
                // Hold nothing of the agent's open meanwhile.
                let _ = self.trash.as_fd();
                raw::close_all();
                for entry in entries() {
                    // What can't be removed now is tried again at the next start.
                    let _ = std::fs::remove_dir_all(entry.path());
                }
                raw::exit_now(0)
            });
        }
        Ok(())
    }
}

/// A VPS's `/run/host`.
#[derive(Debug)]
pub(crate) struct HostView {
    /// As a mount to be attached there.
    pub(crate) mount: OwnedFd,
    /// Its directory, for the engine to write to.
    pub(crate) directory: OwnedFd,
}

/// What a VPS's programs look for in `/run/host`: what the container interface
/// of systemd wants, in `directory` of its private files or else in memory. Its
/// owner is nobody in the VPS, so that nothing is won by making it writable.
pub(crate) fn host_view(directory: Option<&OwnedFd>, uuid: &str) -> Result<HostView, Errno> {
    let Some(directory) = directory else {
        // Not read-only: the engine has no other mount of it to write to.
        let attributes = PLAIN | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let options = [("mode", "0755"), ("size", "64k")];
        let mount = new_mount("tmpfs", &options, attributes)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(&mount, ".", flags, Mode::empty())?;
        describe(&directory, uuid)?;
        return Ok(HostView { mount, directory });
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(directory, "host", flags, Mode::empty())?;
    describe(&directory, uuid)?;
    let mount = super::template::copy_tree(&directory)?;
    raw::guard_mount(mount.as_fd())?;
    Ok(HostView { mount, directory })
}

/// Writes what is in `/run/host`, and makes the place for an uncovered `/proc`.
fn describe(host: impl AsFd, uuid: &str) -> Result<(), Errno> {
    let boot_id = Identity::draw()?.text();
    for (name, text) in [
        ("container-manager", super::CONTAINER),
        (identity::MACHINE_UUID, uuid),
        (identity::BOOT_ID, &boot_id),
    ] {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o444);
        let file = openat(&host, name, flags, mode)?;
        rustix::io::write(file, format!("{text}\n").as_bytes())?;
    }
    match mkdirat(&host, PROC, Mode::from_raw_mode(0o555)) {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_comes_and_goes() {
        let state = tempfile::tempdir().unwrap();
        let files = Files::new(state.path()).unwrap();
        files.create("web").unwrap();
        assert!(files.create("web").is_err());
        for part in PARTS {
            assert!(state.path().join("vps/web").join(part).is_dir());
        }
        files.open("web").unwrap();
        assert!(files.open("db").is_err());
        // Not `remove`: it forks, which a test's threads do not survive.
        assert!(!state.path().join("trash/x").exists());
    }
}

//! Control groups: a VPS's limits, and the part that it may divide itself.
//!
//! ```text
//! ROOT/NAME/          limits; belongs to us
//! ROOT/NAME/payload/  root of the VPS's cgroup namespace; delegated
//! ```

use std::cell::OnceCell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::limits;
use super::{Error, Freezer, IdRange, devices};
use crate::protocol::{Limits, Usage};

/// Controllers that VPSs get, as far as the kernel has them.
const CONTROLLERS: &[&str] = &["cpu", "memory", "io", "pids", "cpuset"];
/// Name of the delegated part.
const PAYLOAD: &str = "payload";
/// What the kernel lists as delegatable, for kernels that do not list it.
const DELEGATE: &str = "cgroup.procs cgroup.threads cgroup.subtree_control";
/// How deep and how many cgroups a VPS may make.
const MAX_DEPTH: &str = "16";
const MAX_DESCENDANTS: &str = "1024";

/// Writes to a file of a cgroup.
fn write(cgroup: impl AsFd, file: &str, text: &str) -> Result<(), Errno> {
    let fd = rustix::fs::openat(
        cgroup,
        file,
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::io::write(fd, text.as_bytes()).map(drop)
}

/// Reads a file of a cgroup, up to 4 KiB.
fn read(cgroup: impl AsFd, file: &str) -> Result<String, Errno> {
    let fd = rustix::fs::openat(
        cgroup,
        file,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut text = vec![0u8; 4096];
    let n = rustix::io::read(fd, &mut text)?;
    text.truncate(n);
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn open(parent: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// The controllers that are in `available` and wanted, but not yet `enabled`,
/// as `cgroup.subtree_control` takes them. Empty: nothing is to be done.
fn missing(available: &str, enabled: &str, wanted: &[&str]) -> String {
    let has = |list: &str, name: &str| list.split_whitespace().any(|entry| entry == name);
    wanted
        .iter()
        .filter(|name| has(available, name) && !has(enabled, name))
        .map(|name| format!("+{name}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Enables controllers for the children of a cgroup.
fn enable(cgroup: impl AsFd, wanted: &[&str]) -> Result<(), Errno> {
    let enabled = read(&cgroup, "cgroup.subtree_control")?;
    if wanted
        .iter()
        .all(|name| enabled.split_whitespace().any(|entry| entry == *name))
    {
        return Ok(());
    }
    let missing = missing(&read(&cgroup, "cgroup.controllers")?, &enabled, wanted);
    if missing.is_empty() {
        Ok(())
    } else {
        write(cgroup, "cgroup.subtree_control", &missing)
    }
}

/// The value behind `key` in a file of `key value` lines.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        line.strip_prefix(key)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    })
}

/// The cgroup below which all VPSs live.
#[derive(Debug)]
pub(crate) struct Cgroups {
    root: OwnedFd,
    path: PathBuf,
    /// Files of a delegated cgroup that its owner may write.
    delegate: Vec<String>,
    /// Set when the devices of all that is below have been bounded.
    bounded: OnceCell<()>,
}

impl Cgroups {
    /// Makes `path` if need be and enables controllers from the hierarchy's
    /// root down to it.
    pub(crate) fn new(path: &Path) -> Result<Self, Error> {
        let error = |op| Error::system(op, path.display().to_string());
        let hierarchy = path
            .ancestors()
            .filter(|dir| is_cgroup2(dir))
            .last()
            .ok_or_else(|| {
                Error::Invalid(format!(
                    "{} is not in a cgroup v2 hierarchy: mount -t cgroup2 cgroup2 /sys/fs/cgroup \
                     (systemd.unified_cgroup_hierarchy=1 on older systems)",
                    path.display()
                ))
            })?
            .to_owned();
        let mut level = hierarchy.clone();
        let mut fd = open(CWD, &level).map_err(error("open cgroup"))?;
        enable(&fd, CONTROLLERS).map_err(error("enable controllers above cgroup"))?;
        for name in path.strip_prefix(&hierarchy).unwrap_or(Path::new("")) {
            level.push(name);
            match rustix::fs::mkdirat(&fd, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(error("make cgroup")(errno)),
            }
            fd = open(&fd, name).map_err(error("open cgroup"))?;
            enable(&fd, CONTROLLERS).map_err(error("enable controllers of cgroup"))?;
        }
        let delegate = std::fs::read_to_string("/sys/kernel/cgroup/delegate")
            .unwrap_or_else(|_| DELEGATE.to_owned());
        Ok(Self {
            root: fd,
            path: path.to_owned(),
            delegate: delegate.split_whitespace().map(str::to_owned).collect(),
            bounded: OnceCell::new(),
        })
    }

    /// Bounds the devices that VPSs may open. Once, when the first one starts:
    /// a guest is ready before it needs that.
    pub(crate) fn bound_devices(&self) -> Result<(), Error> {
        if self.bounded.get().is_some() {
            return Ok(());
        }
        devices::bound(self.root.as_fd()).map_err(|errno| match errno {
            Errno::NOSYS | Errno::INVAL => Error::Invalid(format!(
                "this kernel cannot bound the devices of a cgroup ({errno}): it needs \
                 CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF"
            )),
            errno => Error::system(
                "bound the devices of cgroup",
                self.path.display().to_string(),
            )(errno),
        })?;
        // Nobody else sets it: the engine has one thread.
        let _ = self.bounded.set(());
        Ok(())
    }

    /// For one VPS without a part of its own to divide: enables only what
    /// `limits` need.
    pub(crate) fn for_one(path: &Path, limits: &Limits) -> Result<Self, Error> {
        let error = |op| Error::system(op, path.display().to_string());
        let root = open(CWD, path).map_err(error("open cgroup"))?;
        let mut wanted: Vec<&str> = limits::files(limits)
            .iter()
            .filter_map(|(file, _)| file.split('.').next())
            .collect();
        wanted.dedup();
        enable(&root, &wanted).map_err(error("enable controllers of cgroup"))?;
        Ok(Self {
            root,
            path: path.to_owned(),
            delegate: Vec::new(),
            bounded: OnceCell::new(),
        })
    }

    fn error(&self, op: &'static str, name: &str) -> impl FnOnce(Errno) -> Error + use<> {
        Error::system(op, self.path.join(name).display().to_string())
    }

    /// Makes a VPS's cgroups, with its limits in force, and opens the one where
    /// its processes start. With `owner`, a part
    /// of them is that VPS's root's to divide.
    pub(crate) fn create(
        &self,
        name: &str,
        limits: &Limits,
        owner: Option<IdRange>,
    ) -> Result<OwnedFd, Error> {
        match rustix::fs::mkdirat(&self.root, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            // Left by an agent that was killed: empty, or it could not be reused.
            Err(Errno::EXIST) => {
                self.remove(name)?;
                rustix::fs::mkdirat(&self.root, name, Mode::from_raw_mode(0o755))
                    .map_err(self.error("make cgroup", name))?;
            }
            Err(errno) => return Err(self.error("make cgroup", name)(errno)),
        }
        self.fill(name, limits, owner).inspect_err(|_| {
            let _ = self.remove(name);
        })
    }

    fn fill(&self, name: &str, limits: &Limits, owner: Option<IdRange>) -> Result<OwnedFd, Error> {
        let outer = open(&self.root, name).map_err(self.error("open cgroup", name))?;
        for (file, text) in limits::files(limits) {
            match write(&outer, file, &text) {
                Ok(()) => {}
                // A kernel without swap has no such file.
                Err(Errno::NOENT) if file == "memory.swap.max" => {}
                Err(errno) => {
                    let what = format!("{file} of cgroup {name} to {text}");
                    return Err(Error::System {
                        op: "set",
                        subject: what,
                        errno,
                    });
                }
            }
        }
        let Some(owner) = owner else {
            return Ok(outer);
        };
        enable(&outer, CONTROLLERS).map_err(self.error("enable controllers of cgroup", name))?;
        for (file, text) in [
            ("cgroup.max.depth", MAX_DEPTH),
            ("cgroup.max.descendants", MAX_DESCENDANTS),
        ] {
            write(&outer, file, text).map_err(self.error("bound cgroup", name))?;
        }
        rustix::fs::mkdirat(&outer, PAYLOAD, Mode::from_raw_mode(0o755))
            .map_err(self.error("make payload of cgroup", name))?;
        let payload = open(&outer, PAYLOAD).map_err(self.error("open payload of cgroup", name))?;
        let (uid, gid) = (Uid::from_raw(owner.base()), Gid::from_raw(owner.base()));
        for file in std::iter::once(".").chain(self.delegate.iter().map(String::as_str)) {
            match rustix::fs::chownat(&payload, file, Some(uid), Some(gid), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(self.error("delegate cgroup", name)(errno)),
            }
        }
        Ok(payload)
    }

    /// Opens the cgroup where processes of a VPS that runs start.
    pub(crate) fn open(&self, name: &str) -> Result<OwnedFd, Error> {
        let outer = open(&self.root, name).map_err(self.error("open cgroup", name))?;
        match open(&outer, PAYLOAD) {
            Err(Errno::NOENT) => Ok(outer),
            other => other.map_err(self.error("open payload of cgroup", name)),
        }
    }

    /// The cgroup that process `pid`, of that VPS, is in: for sessions of a
    /// VPS whose init moved itself and divided its payload.
    pub(crate) fn of_process(&self, name: &str, pid: i32) -> Result<OwnedFd, Error> {
        let file = format!("/proc/{pid}/cgroup");
        let text = std::fs::read_to_string(&file).map_err(Error::io("read", &file))?;
        // "0::/vps/web/payload/init.scope": what follows the VPS's own name.
        let inside = text
            .lines()
            .find_map(|line| line.strip_prefix("0::"))
            .and_then(|path| path.split_once(&format!("/{name}/{PAYLOAD}/")))
            .map(|(_, inside)| inside.to_owned())
            .ok_or_else(|| Error::Invalid(format!("VPS {name} left its cgroup")))?;
        let payload = self.open(name)?;
        open(&payload, inside.as_str()).map_err(self.error("open a cgroup in", name))
    }

    /// Kills all processes below.
    pub(crate) fn kill(&self, name: &str) -> Result<(), Error> {
        match open(&self.root, name).and_then(|cgroup| write(cgroup, "cgroup.kill", "1")) {
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => Ok(()),
            Err(errno) => Err(self.error("kill cgroup", name)(errno)),
        }
    }

    /// What holds the processes of all VPSs.
    pub(crate) fn freezer(&self) -> Result<Freezer, Errno> {
        Freezer::new(&self.root)
    }

    /// Removes a VPS's cgroups, those that it made included. `false`: there
    /// are processes in it.
    pub(crate) fn remove(&self, name: &str) -> Result<bool, Error> {
        // The common case first: nothing below.
        match rustix::fs::unlinkat(&self.root, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            Err(_) => {}
        }
        match remove_tree(&self.root, name, 0) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::BUSY) => Ok(false),
            Err(errno) => Err(self.error("remove cgroup", name)(errno)),
        }
    }

    /// Removes cgroups called `PREFIX` and a PID, of processes that are gone:
    /// those that were killed before they could clear away.
    pub(crate) fn sweep(&self, prefix: &str) {
        let Ok(entries) = Dir::read_from(&self.root) else {
            return;
        };
        for entry in entries.flatten() {
            let Some(name) = entry.file_name().to_str().ok() else {
                continue;
            };
            let pid = name
                .strip_prefix(prefix)
                .and_then(|pid| pid.parse::<u32>().ok());
            if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                // Another process may do the same now.
                let _ = self.remove(name);
            }
        }
    }

    /// How many tasks there are in a VPS.
    pub(crate) fn tasks(&self, name: &str) -> Option<u64> {
        let outer = open(&self.root, name).ok()?;
        read(outer, "pids.current").ok()?.trim().parse().ok()
    }

    /// Its file with counts of what the kernel did for want of memory.
    pub(crate) fn memory_events(&self, name: &str) -> PathBuf {
        self.path.join(name).join("memory.events")
    }

    /// How many processes were killed for want of memory.
    pub(crate) fn oom_kills(&self, name: &str) -> Option<u64> {
        let outer = open(&self.root, name).ok()?;
        field(&read(outer, "memory.events").ok()?, "oom_kill")
    }

    /// What a VPS uses.
    pub(crate) fn usage(&self, name: &str) -> Result<Usage, Error> {
        let outer = open(&self.root, name).map_err(self.error("open cgroup", name))?;
        // A file that is missing belongs to a controller that the kernel lacks.
        let text = |file: &str| read(&outer, file).unwrap_or_default();
        let number = |file: &str| text(file).trim().parse().unwrap_or(0);
        Ok(Usage {
            memory_bytes: number("memory.current"),
            memory_peak_bytes: number("memory.peak"),
            cpu_us: field(&text("cpu.stat"), "usage_usec").unwrap_or(0),
            pids: number("pids.current") as u32,
            oom_kills: field(&text("memory.events"), "oom_kill").unwrap_or(0),
            pids_refused: field(&text("pids.events"), "max").unwrap_or(0),
        })
    }
}

fn is_cgroup2(dir: &Path) -> bool {
    const MAGIC: u64 = 0x6367_7270;
    rustix::fs::statfs(dir).is_ok_and(|stat| stat.f_type as u64 == MAGIC)
}

/// Removes a cgroup and those below; no deeper than [`MAX_DEPTH`] allows.
fn remove_tree(parent: &OwnedFd, name: &str, depth: u32) -> Result<(), Errno> {
    if depth > 20 {
        return Err(Errno::LOOP);
    }
    let cgroup = open(parent, name)?;
    let children: Vec<String> = Dir::read_from(&cgroup)?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type() == FileType::Directory)
        .filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned))
        .filter(|name| name != "." && name != "..")
        .collect();
    for child in children {
        remove_tree(&cgroup, &child, depth + 1)?;
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_controllers_are_enabled() {
        assert_eq!(
            missing("cpuset cpu io memory pids", "cpu", CONTROLLERS),
            "+memory +io +pids +cpuset"
        );
        assert_eq!(missing("cpu pids", "cpu pids", CONTROLLERS), "");
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let events = "low 0\noom 3\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(field(events, "oom_kill"), Some(2));
        assert_eq!(field(events, "oom"), Some(3));
        assert_eq!(field(events, "oo"), None);
    }
}

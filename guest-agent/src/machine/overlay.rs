//! The root of a microVM's machine sessions: an overlay over a template.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive,
    mount_change, unmount,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitId, WaitIdOptions, chdir, pivot_root, waitid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::{MachineRoot, boot_id};
use crate::protocol::{Code, Failure};
use crate::sys;
use crate::vps::identity::KERNEL_BOOT_ID;

/// Where the root is put together, in the agent's own file system.
const STAGE: &str = "/run/machine";

/// What a machine's root is made of.
#[derive(Debug, Clone)]
pub struct MachineOverlay {
    /// The device, or file, with the template's EROFS image; `None` is an
    /// empty root, in which only an error can be had.
    pub template: PathBuf,
    /// A directory on the data disk for what is written; `None`: memory.
    pub writable: Option<PathBuf>,
}

type Step = (String, Errno);

fn at(what: impl Into<String>) -> impl FnOnce(Errno) -> Step {
    let what = what.into();
    move |errno| (what, errno)
}

fn make_dir(path: &Path) -> Result<(), Step> {
    fs::create_dir_all(path).map_err(|e| {
        let errno = Errno::from_io_error(&e).unwrap_or(Errno::IO);
        (format!("make directory {}", path.display()), errno)
    })
}

impl MachineOverlay {
    /// Makes the root in a mount namespace of its own. A forked worker does
    /// it and ends; the namespace lives on by the descriptors.
    ///
    /// # Errors
    /// What could not be mounted.
    pub fn prepare(&self) -> Result<MachineRoot, Failure> {
        self.prepare_in_worker().map_err(|(what, errno)| Failure {
            code: Code::Internal,
            message: format!("cannot make the machine's root: {what}: {errno}"),
            errno: Some(errno.raw_os_error()),
        })
    }

    fn prepare_in_worker(&self) -> Result<MachineRoot, Step> {
        let (report, report_far) = pipe_with(PipeFlags::CLOEXEC).map_err(at("make a pipe"))?;
        let (done_far, done) = pipe_with(PipeFlags::CLOEXEC).map_err(at("make a pipe"))?;
        let Some(pid) = sys::fork().map_err(at("fork"))? else {
            drop((report, done));
            let text = match self.assemble() {
                Ok(()) => b"ok".to_vec(),
                Err((what, errno)) => {
                    let mut text = errno.raw_os_error().to_le_bytes().to_vec();
                    text.extend_from_slice(what.as_bytes());
                    text
                }
            };
            let _ = rustix::io::write(&report_far, &text);
            // Until the parent has what it needs.
            let _ = rustix::io::read(&done_far, &mut [0; 1]);
            sys::exit_now(0);
        };
        drop((report_far, done_far));
        let outcome = Self::collect(pid, &report);
        drop(done);
        if let Some(pid) = Pid::from_raw(pid) {
            let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
        }
        outcome
    }

    fn collect(pid: i32, report: &OwnedFd) -> Result<MachineRoot, Step> {
        let mut text = [0; 512];
        let length = loop {
            match rustix::io::read(report, &mut text) {
                Err(Errno::INTR) => {}
                other => break other.map_err(at("hear from the worker"))?,
            }
        };
        if &text[..length] != b"ok" {
            let Some((errno, what)) = text[..length].split_first_chunk::<4>() else {
                return Err(("the worker ended early".into(), Errno::CHILD));
            };
            let errno = Errno::from_raw_os_error(i32::from_le_bytes(*errno).clamp(1, 4095));
            return Err((String::from_utf8_lossy(what).into_owned(), errno));
        }
        let namespace = open(
            format!("/proc/{pid}/ns/mnt"),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(at("open its mount namespace"))?;
        let directory = open(
            format!("/proc/{pid}/root"),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(at("open its root directory"))?;
        Ok(MachineRoot {
            namespace,
            directory,
        })
    }

    /// In the worker: mounts everything and makes it the root.
    fn assemble(&self) -> Result<(), Step> {
        // SAFETY: the worker is a process of one thread, whose root and
        // working directory are nobody else's.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(at("make a mount namespace"))?;
        mount_change(
            "/",
            MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
        )
        .map_err(at("make mounts private"))?;
        let stage = Path::new(STAGE);
        let (lower, root) = (stage.join("lower"), stage.join("root"));
        make_dir(stage)?;
        let none = None::<&std::ffi::CStr>;
        let writable = if let Some(path) = &self.writable {
            path.clone()
        } else {
            mount("machine", stage, "tmpfs", MountFlags::empty(), c"mode=755")
                .map_err(at("mount tmpfs"))?;
            stage.to_owned()
        };
        let (upper, work) = (writable.join("upper"), writable.join("work"));
        for path in [&lower, &root, &upper, &work] {
            make_dir(path)?;
        }
        mount(&self.template, &lower, "erofs", MountFlags::RDONLY, none)
            .map_err(at(format!("mount template {}", self.template.display())))?;
        let options = std::ffi::CString::new(format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        ))
        .map_err(|_| ("mount overlay".to_owned(), Errno::INVAL))?;
        mount(
            "machine",
            &root,
            "overlay",
            MountFlags::empty(),
            options.as_c_str(),
        )
        .map_err(at("mount overlay"))?;

        let guarded = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
        let place = |name: &str| -> Result<PathBuf, Step> {
            let path = root.join(name);
            make_dir(&path)?;
            Ok(path)
        };
        mount("proc", &place("proc")?, "proc", guarded, none).map_err(at("mount /proc"))?;
        mount_bind_recursive("/sys", &place("sys")?).map_err(at("bind /sys"))?;
        mount_bind_recursive("/dev", &place("dev")?).map_err(at("bind /dev"))?;
        let free = MountFlags::NOSUID | MountFlags::NODEV;
        mount("run", &place("run")?, "tmpfs", free, c"mode=755").map_err(at("mount /run"))?;
        // The kernel lets user namespaces mount a /proc of their own only if
        // there is one that nothing covers.
        mount("proc", &place("run/host/proc")?, "proc", guarded, none)
            .map_err(at("mount a second /proc"))?;
        let boot_id = root.join("proc").join(KERNEL_BOOT_ID);
        boot_id::make()
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
            .and_then(|()| mount_bind(boot_id::FILE, &boot_id))
            .map_err(at("give it a boot identity"))?;
        mount("tmp", &place("tmp")?, "tmpfs", free, c"mode=1777").map_err(at("mount /tmp"))?;
        // Not all templates have it; nobody else makes it.
        let shm = root.join("dev/shm");
        if make_dir(&shm).is_ok() {
            mount("shm", &shm, "tmpfs", free, c"mode=1777").map_err(at("mount /dev/shm"))?;
        }

        chdir(&root).map_err(at("change to the root"))?;
        pivot_root(".", ".").map_err(at("pivot to the root"))?;
        unmount(".", UnmountFlags::DETACH).map_err(at("leave the old root"))?;
        chdir("/").map_err(at("change to the root"))
    }
}

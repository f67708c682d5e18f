//! How a VPS is started.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::engine::TTY;
use super::launch::{self, Launch, Streams, environment};
use super::process::{reap, settle};
use super::raw::{self, Cloned};
use super::{
    Engine, Error, IdRange, Io, Process, Running, Start, Template, Vps, files, handshake, init,
    mounts, template,
};
use crate::protocol::{Init, VpsSpec};

/// Namespaces of every VPS; the time namespace comes with its first process.
const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP;

impl Engine {
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
        let owner = self.delegate.then_some(vps.ids);
        if self.delegate {
            self.cgroups.bound_devices()?;
        }
        let cgroup = self.cgroups.create(vps.name(), &vps.spec.limits, owner)?;
        self.start_in(vps, template, start, cgroup.as_fd())
            .inspect_err(|_| {
                // Its failure matters less than the one that is being reported.
                let _ = self.cgroups.remove(vps.name());
            })
    }

    fn start_in(
        &self,
        vps: &Vps,
        template: &Template,
        start: &Start<'_>,
        cgroup: BorrowedFd<'_>,
    ) -> Result<Running, Error> {
        let error = |op| Error::system(op, vps.name());
        let console = matches!(start.io, Io::Terminal(_));
        let umask = rustix::process::umask(Mode::empty());
        let dev = mounts::device_tree(&self.devices, console);
        rustix::process::umask(umask);
        let dev = dev.map_err(error("make /dev of VPS"))?;
        let tty = vps.ids.base() + TTY;
        let terminals = mounts::terminals(tty).map_err(error("make /dev/pts of VPS"))?;
        let (master, slave) = match start.io {
            Io::Terminal(size) => {
                let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
                let failed = || error("open console of VPS");
                let master = openat(&terminals, "ptmx", flags, Mode::empty()).map_err(failed())?;
                let owner = Some((vps.ids.base(), tty));
                let slave = launch::open_terminal(&master, size, owner).map_err(failed())?;
                (Some(master), Some(slave))
            }
            Io::Inherit | Io::Files(_) => (None, None),
        };
        let number = master.as_ref().map(raw::terminal_number).transpose();
        let template = template.copy()?;
        let directory = match &self.files {
            Some(files) => Some(files.open(vps.name())?),
            None => None,
        };
        let files = directory.as_ref().map(template::copy_tree).transpose();
        let files = files.map_err(error("copy mount of files of VPS"))?;
        let host = files::host_view(directory.as_ref(), &vps.uuid_text());
        let host = host.map_err(error("make /run/host of VPS"))?;
        let launch = Launch::new(&init_command(&vps.spec), Streams::new(&start.io, slave))?;
        let env = init_environment(vps, console, start.env)?;
        let plan = init::Plan {
            template: template.as_fd(),
            files: files.as_ref().map(AsFd::as_fd),
            dev: dev.as_fd(),
            terminals: terminals.as_fd(),
            console: number.map_err(error("number console of VPS"))?,
            hostname: vps
                .spec
                .hostname
                .as_ref()
                .unwrap_or(&vps.spec.name)
                .as_str(),
            host: host.mount.as_fd(),
            oom_score_adj: self.oom_score_adj,
            filter: &self.filter,
            env: &env,
            launch: &launch,
        };
        let mapped = [
            Some(template.as_fd()),
            files.as_ref().map(AsFd::as_fd),
            Some(dev.as_fd()),
        ];

        let (engine, newcomer) = handshake::pair().map_err(error("make sockets for VPS"))?;
        let cloned = raw::clone3(NAMESPACES, Some(cgroup), false)
            .map_err(error("make namespaces of VPS"))?;
        let Cloned::Parent { pid, pidfd } = cloned else {
            drop(engine);
            raw::end(|| match init::run(&plan, &newcomer) {
                Err((step, errno)) => newcomer.fail(step, errno),
            })
        };
        drop(newcomer);
        let started_at_ns = boot_clock();
        let prepared = map_ids(pid, vps.ids, mapped.into_iter().flatten());
        if prepared.is_ok() {
            engine.go();
        }
        let process = Process {
            pid,
            pidfd,
            terminal: master,
        };
        if let Err(error) = prepared {
            drop(engine);
            reap(&process);
            return Err(error);
        }
        let outcome = engine.outcome();
        settle(
            &format!("VPS {}", vps.name()),
            &launch.program(),
            &outcome,
            process,
        )
        .map(|init| Running {
            init,
            started_at_ns,
            terminals,
            host: host.directory,
        })
    }
}

/// The command of a VPS's init.
fn init_command(spec: &VpsSpec) -> Vec<String> {
    match &spec.init {
        Init::Template => vec!["/sbin/init".to_owned()],
        Init::Command(argv) => argv.clone(),
    }
}

/// The environment of a VPS's init: as systemd's container interface wants it.
fn init_environment(
    vps: &Vps,
    console: bool,
    added: &[String],
) -> Result<Vec<std::ffi::CString>, Error> {
    let mut base = vec![
        launch::PATH.to_owned(),
        "HOME=/root".to_owned(),
        format!("container={}", super::CONTAINER),
        format!("container_uuid={}", vps.uuid_text()),
    ];
    if console {
        base.push("TERM=linux".to_owned());
    }
    environment(&base, added)
}

/// Gives a new process its IDs, and maps the owners in its mounts to them.
fn map_ids<'a>(
    pid: i32,
    ids: IdRange,
    mapped: impl Iterator<Item = BorrowedFd<'a>>,
) -> Result<(), Error> {
    let error = |op| Error::system(op, format!("process {pid}"));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let process = openat(CWD, format!("/proc/{pid}"), flags, Mode::empty())
        .map_err(error("look up /proc of"))?;
    let line = ids.map_line();
    for file in ["uid_map", "gid_map"] {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&process, file, flags, Mode::empty())
            .and_then(|file| rustix::io::write(file, line.as_bytes()))
            .map_err(error("write ID maps of"))?;
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = openat(&process, "ns/user", flags, Mode::empty())
        .map_err(error("open user namespace of"))?;
    for mount in mapped {
        raw::idmap_mount(mount, namespace.as_fd()).map_err(|errno| match errno {
            Errno::INVAL => Error::Invalid(
                "the template or the data directory is on a file system that can't be ID-mapped: \
                 use one of ext4, xfs, btrfs, tmpfs or an EROFS image"
                    .into(),
            ),
            errno => error("ID-map a mount for")(errno),
        })?;
    }
    Ok(())
}

/// `CLOCK_BOOTTIME` in nanoseconds.
fn boot_clock() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

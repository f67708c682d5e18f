//! PID 1 of a guest: from the kernel's hands to readiness, and back.

mod identity;
mod mounts;
mod power;
mod sysctl;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_error;
use rustix::net::{SendFlags, send};

use crate::machine::{Machine, MachineOverlay, SessionCgroup};
use crate::protocol::{
    AGENT_PORT, BOOT_CONFIG_PATH, BootConfig, Code, DiskRole, Frame, GoodbyeReason, HOST_PORT, Name,
};
use crate::server::{Agent, HostLine, Listener, Setup, Ways, failure, hello, log};
use crate::supervisor::{Supervisor, Templates};
use crate::sys;
use crate::vps::{EngineConfig, TemplateSource, leave_initramfs};

/// How long the host may take to accept the agent's call.
const CALL_SECONDS: i64 = 10;
/// Where VPSs' cgroups are.
const VPS_CGROUP: &str = "/sys/fs/cgroup/vps";
/// Where the cgroup of processes outside of VPSs is.
const SESSION_CGROUP: &str = "/sys/fs/cgroup/machine";
/// Where templates are mounted.
const TEMPLATE_MOUNTS: &str = "/run/insula/templates";
/// The agent is killed last when memory runs out.
const OOM_SCORE_ADJ: &str = "-1000";

/// The life of PID 1. It ends with the guest.
pub fn main() -> ! {
    // Before anything else: the host takes the time of this call.
    let host = sys::vsock_dial(sys::VSOCK_HOST, HOST_PORT);
    let mut line = host.ok();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| live(&mut line)));
    let reason = match outcome {
        Ok(Ok(())) => GoodbyeReason::Requested,
        Ok(Err(why)) => GoodbyeReason::Failed(why),
        Err(_) => GoodbyeReason::Failed("the agent panicked".into()),
    };
    if let GoodbyeReason::Failed(why) = &reason {
        log(why);
    }
    power::off(line, reason)
}

/// Boots, serves, and returns when the guest is to power off.
fn live(line: &mut Option<OwnedFd>) -> Result<(), String> {
    mounts::kernel_file_systems()?;
    leave_initramfs().map_err(|e| e.to_string())?;
    let boot = read_boot_config()?;

    sysctl::apply();
    // None of these keeps the guest from being of use.
    identity::set_name(&boot.hostname);
    if let Err(e) = sys::loopback_up() {
        log(&format!("cannot bring the loopback interface up: {e}"));
    }
    if boot.wall_clock_ns != 0 {
        let since = crate::server::timers::now();
        identity::set_clock(boot.wall_clock_ns.saturating_add(since));
    }
    if let Err(e) = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ) {
        log(&format!("cannot set the agent's oom_score_adj: {e}"));
    }

    let disks = Disks::of(&boot);
    if let Some(device) = &disks.data {
        mounts::data_disk(device)?;
    }
    let machine = disks.machine(&boot)?;
    let data = disks.data.is_some().then(|| PathBuf::from(mounts::DATA));
    let templates = Templates {
        named: disks.templates,
        directory: None,
        mount_dir: TEMPLATE_MOUNTS.into(),
    };
    let config = EngineConfig {
        state_dir: data.clone(),
        cgroup_root: VPS_CGROUP.into(),
        oom_score_adj: Some(0),
    };
    // A guest without VPSs is of use still, and says why when asked for one.
    let supervisor = Supervisor::new(config, templates).map(|(supervisor, troubles)| {
        for trouble in troubles {
            log(&trouble);
        }
        supervisor
    });
    if let Err(why) = &supervisor {
        log(&format!("there can be no VPSs in this guest: {why}"));
    }
    let listener = Listener::vsock(AGENT_PORT)
        .map_err(|e| format!("cannot listen on vsock port {AGENT_PORT}: {e}"))?;

    match line.as_ref() {
        Some(socket) => say_hello(socket, &boot)?,
        None => log("the guest has no vsock device: nobody can reach its agent"),
    }
    let mut agent = Agent::new(Setup {
        listeners: vec![listener],
        host: line
            .take()
            .map(|line| HostLine::new(line, boot.nonce, ways())),
        supervisor,
        machine,
        sessions: Some(SessionCgroup::new(SESSION_CGROUP.into())),
        disk: data,
        protected: true,
    })
    .map_err(|e| format!("cannot wait for events: {e}"))?;
    agent.autostart();
    let served = agent.run().map_err(|e| e.to_string());
    *line = agent.into_host();
    served
}

/// What the agent's call to the host needs of a guest.
fn ways() -> Ways {
    Ways {
        dial: Box::new(|| sys::vsock_dial(sys::VSOCK_HOST, HOST_PORT)),
        assume: Box::new(identity::assume),
        set_clock: Box::new(identity::catch_up),
    }
}

fn read_boot_config() -> Result<BootConfig, String> {
    let bytes = fs::read(BOOT_CONFIG_PATH)
        .map_err(|e| format!("cannot read {BOOT_CONFIG_PATH} from the initramfs: {e}"))?;
    minicbor::decode(&bytes)
        .map_err(|e| format!("{BOOT_CONFIG_PATH} is not a boot configuration of this version: {e}"))
}

/// What is on which block device.
struct Disks {
    templates: BTreeMap<Name, TemplateSource>,
    data: Option<PathBuf>,
}

impl Disks {
    fn of(boot: &BootConfig) -> Self {
        let mut disks = Self {
            templates: BTreeMap::new(),
            data: None,
        };
        for (disk, letter) in boot.disks.iter().zip('a'..='z') {
            let device = PathBuf::from(format!("/dev/vd{letter}"));
            match &disk.role {
                DiskRole::Template(name) => {
                    disks
                        .templates
                        .insert(name.clone(), TemplateSource::Erofs(device));
                }
                DiskRole::Data => disks.data = Some(device),
            }
        }
        disks
    }

    fn machine(&self, boot: &BootConfig) -> Result<Machine, String> {
        let Some(name) = &boot.machine_root else {
            let why = "this guest is a host of VPSs and has no root of its own to run programs \
                       in; name a VPS";
            return Ok(Machine::None(failure(Code::Unsupported, why)));
        };
        let Some(TemplateSource::Erofs(device)) = self.templates.get(name) else {
            return Err(format!(
                "the machine's root is to be template {name}, which no disk holds"
            ));
        };
        let writable = self
            .data
            .is_some()
            .then(|| PathBuf::from(mounts::DATA).join("machine"));
        Ok(Machine::Overlay(
            MachineOverlay {
                template: device.clone(),
                writable,
            },
            None,
        ))
    }
}

/// Waits until the host has accepted the call, and says that the agent is ready.
fn say_hello(line: &OwnedFd, boot: &BootConfig) -> Result<(), String> {
    let refused = |e: Errno| format!("the host does not take the agent's call: {e}");
    let limit = Timespec {
        tv_sec: CALL_SECONDS,
        tv_nsec: 0,
    };
    let ready = poll(&mut [PollFd::new(line, PollFlags::OUT)], Some(&limit)).map_err(refused)?;
    if ready == 0 {
        return Err(refused(Errno::TIMEDOUT));
    }
    socket_error(line).map_err(refused)?.map_err(refused)?;
    let bytes = Frame::new(0, hello(&boot.nonce)).to_bytes();
    send(line, &bytes, SendFlags::NOSIGNAL).map_err(refused)?;
    Ok(())
}

//! `insula run`

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use guest_agent::client::Client;
use guest_agent::protocol::{Exec, Init, Name, RestartPolicy, Run, Target, VpsSpec};
use vmm::config::{MemSize, VcpuCount};
use vmm::guest::{GuestSpec, RunRoot};

use crate::agent::{Streams, sweep};
use crate::assets::{self, Assets};
use crate::cli::{MachineOptions, Model, On, RunOptions};
use crate::failure::{Failure, Outcome};
use crate::forward;
use crate::interrupt::Interrupt;
use crate::machine::{self, Purpose};
use crate::output::Output;
use crate::place::{self, Place};
use crate::vps::limits_of;

/// Memory of a guest beside what its only VPS may use, in MiB.
const GUEST_OVERHEAD_MIB: u64 = 128;

/// Runs `insula run`.
pub(crate) fn main(options: &RunOptions, on: Option<On>, output: &Output) -> Outcome {
    check(options)?;
    let place = place::decide(on, output)?;
    if place == Place::Lab {
        return forward::to_lab(None, output);
    }
    match options.model {
        Model::Process => Err(not_executed(
            &options.command[0],
            &Command::new(&options.command[0])
                .args(&options.command[1..])
                .envs(variables(&options.env))
                .exec(),
        )),
        Model::HostVps => host_vps(options, output),
        Model::GuestVps => guest_vps(options, place, output),
        Model::Microvm => microvm(options, place, output),
    }
}

/// Refuses what a model can't hold to, rather than ignoring it.
fn check(options: &RunOptions) -> Result<(), Failure> {
    let limits = &options.limits;
    let refuse = |option: &str, why: &str| Err(Failure::usage(format!("{option}: {why}")));
    let is_guest = matches!(options.model, Model::GuestVps | Model::Microvm);
    if options.vcpus.is_some() && (!is_guest || options.guest.is_some()) {
        return refuse(
            "--vcpus",
            "only a guest that is started for the command has vCPUs",
        );
    }
    if options.guest.is_some() && options.model != Model::GuestVps {
        return refuse(
            "--guest",
            "only --model guest-vps runs in a guest that is there",
        );
    }
    let any = limits.memory.is_some()
        || limits.cpus.is_some()
        || limits.cpu_weight.is_some()
        || limits.pids.is_some();
    if options.model == Model::Process && (any || options.hostname.is_some()) {
        return refuse(
            "--model process",
            "a plain process has no limits and no host name",
        );
    }
    if options.model == Model::HostVps && limits.cpu_weight.is_some() {
        return refuse(
            "--model host-vps",
            "there is nobody beside it to weigh --cpu-weight against",
        );
    }
    if options.model == Model::Microvm && (limits.cpu_weight.is_some() || limits.pids.is_some()) {
        return refuse(
            "--model microvm",
            "a virtual machine has no --cpu-weight and no --pids of its own",
        );
    }
    if options.model != Model::Process {
        assets::template(options.template.as_str())?;
    }
    Ok(())
}

/// Why a command could not be executed, with the exit code that shells give it.
fn not_executed(program: &str, error: &std::io::Error) -> Failure {
    let code = if error.kind() == std::io::ErrorKind::NotFound {
        127
    } else {
        126
    };
    Failure::new(format!("cannot execute {program}: {error}")).with_code(code)
}

fn variables(env: &[String]) -> impl Iterator<Item = (&str, &str)> {
    env.iter().filter_map(|variable| variable.split_once('='))
}

/// Says what is missing before the agent fails on it: limits, and the end of
/// all of a VPS's processes, need cgroups of version 2.
fn require_unified_cgroups(root: &Path) -> Result<(), Failure> {
    if root.join("cgroup.controllers").exists() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "this host has no cgroup v2 hierarchy at {} (its controllers are in version 1), which \
         --model host-vps needs: boot it with systemd.unified_cgroup_hierarchy=1 or \
         cgroup_no_v1=all, or use --model guest-vps",
        root.display()
    )))
}

/// The agent's one-shot role does it all, without a daemon and without us.
fn host_vps(options: &RunOptions, output: &Output) -> Outcome {
    require_unified_cgroups(Path::new("/sys/fs/cgroup"))?;
    let assets = Assets::open(output)?;
    let agent = assets.agent()?;
    let mut command = Command::new(&agent);
    command
        .arg("run")
        .arg("--template")
        .arg(assets.template(options.template.as_str())?);
    let hostname = match &options.hostname {
        Some(name) => name.clone(),
        None => own_name()?,
    };
    command.args(["--hostname", hostname.as_str()]);
    let limits = &options.limits;
    if let Some(memory) = limits.memory {
        command.args(["--memory", &memory.bytes().to_string()]);
    }
    if let Some(milli) = limits.cpus {
        command.args(["--cpus", &format!("{}.{:03}", milli / 1000, milli % 1000)]);
    }
    if let Some(pids) = limits.pids {
        command.args(["--pids", &pids.to_string()]);
    }
    for variable in &options.env {
        command.args(["--env", variable]);
    }
    command.arg("--").args(&options.command);
    output.detail(format!("{command:?}"));
    Err(Failure::new(format!(
        "cannot execute {}: {}",
        agent.display(),
        command.exec()
    )))
}

fn guest_vps(options: &RunOptions, place: Place, output: &Output) -> Outcome {
    let name = own_name()?;
    let spec = VpsSpec {
        name: name.clone(),
        template: options.template.clone(),
        hostname: options.hostname.clone(),
        init: Init::Command(options.command.clone()),
        limits: limits_of(&options.limits),
        autostart: false,
        restart: RestartPolicy::Never,
    };
    let streams = Streams::new(options.terminal, options.no_terminal);
    let run = Run {
        spec,
        env: streams.environment(&options.env),
        terminal: streams.terminal,
    };
    if let Some(guest) = &options.guest {
        let dir = RunRoot::for_user()?.find_living(guest)?;
        dir.check_running()?;
        return streams.attach(Client::connect(&dir.endpoint())?.run(run), None);
    }
    let limit = options
        .limits
        .memory
        .map(|size| size.as_mib().saturating_add(GUEST_OVERHEAD_MIB));
    let memory = limit.unwrap_or(0).max(GuestSpec::DEFAULT_MEMORY_MIB);
    let machine = MachineOptions {
        vcpus: Some(vcpus(options)?),
        memory: Some(MemSize::try_from(memory).map_err(Failure::usage)?),
        templates: vec![options.template.clone()],
        ..MachineOptions::default()
    };
    let purpose = Purpose {
        ephemeral: true,
        cold: options.start.cold,
        ..Purpose::default()
    };
    in_own_guest(&name, &machine, &purpose, place, output, |client| {
        streams.attach(client.run(run), None)
    })
}

fn microvm(options: &RunOptions, place: Place, output: &Output) -> Outcome {
    let memory = match options.limits.memory {
        Some(size) => Some(MemSize::try_from(size.as_mib()).map_err(Failure::usage)?),
        None => None,
    };
    let machine = MachineOptions {
        vcpus: Some(vcpus(options)?),
        memory,
        ..MachineOptions::default()
    };
    let purpose = Purpose {
        ephemeral: true,
        cold: options.start.cold,
        machine_root: Some(options.template.clone()),
        hostname: options.hostname.clone(),
        ..Purpose::default()
    };
    let streams = Streams::new(options.terminal, options.no_terminal);
    let exec = Exec {
        target: Target::Machine,
        argv: options.command.clone(),
        env: streams.environment(&options.env),
        cwd: None,
        user: None,
        terminal: streams.terminal,
    };
    in_own_guest(&own_name()?, &machine, &purpose, place, output, |client| {
        streams.attach(client.exec(exec), None)
    })
}

/// Starts a guest, does something with its agent, and removes the guest
/// whatever came of it.
fn in_own_guest(
    name: &Name,
    machine: &MachineOptions,
    purpose: &Purpose,
    place: Place,
    output: &Output,
    act: impl FnOnce(Client) -> Outcome,
) -> Outcome {
    sweep(&RunRoot::for_user()?, output);
    let guest = machine::launch(name, machine, purpose, place, output)?;
    let interrupt = Interrupt::catch()?;
    interrupt.check()?;
    let outcome = Client::connect(&guest.endpoint())
        .map_err(Failure::from)
        .and_then(act);
    // Nothing in it is worth a power-off in good order.
    let stopped = guest.stop(Duration::ZERO);
    let code = outcome?;
    stopped?;
    Ok(code)
}

/// As many virtual processors as the CPU limit can keep busy.
fn vcpus(options: &RunOptions) -> Result<VcpuCount, Failure> {
    if let Some(vcpus) = options.vcpus {
        return Ok(vcpus);
    }
    let wanted = options.limits.cpus.unwrap_or(1000).div_ceil(1000);
    VcpuCount::try_from(u64::from(wanted)).map_err(|_| {
        Failure::usage(format!(
            "--cpus: a guest has at most 16 vCPUs, not {wanted}"
        ))
    })
}

/// A name that no other run has at this time.
fn own_name() -> Result<Name, Failure> {
    Name::new(format!("run-{}", std::process::id())).map_err(Failure::usage)
}

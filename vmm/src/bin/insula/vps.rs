//! `insula vps`

use std::time::Duration;

use guest_agent::client::Client;
use guest_agent::protocol::{
    Exec, Init, Limits, Name, RestartPolicy, Target, VpsInfo, VpsSpec, VpsState,
};
use serde_json::{Value, json};
use vmm::guest::Size;

use crate::agent::{MAIN, Streams, choose, connect};
use crate::cli::{GuestChoice, LimitOptions, MachineOptions, On, VpsCommand};
use crate::failure::{Failure, Outcome};
use crate::forward;
use crate::machine::{self, Purpose};
use crate::output::{Output, table};
use crate::place::{self, Place};

/// What `exec` runs when nothing is said.
const SHELL: [&str; 2] = ["/bin/sh", "-l"];
/// Leaves a console: Ctrl-].
const DETACH: u8 = 0x1d;

/// Runs an `insula vps` command.
pub(crate) fn main(command: &VpsCommand, on: Option<On>, output: &Output) -> Outcome {
    let place = place::decide(on, output)?;
    if place == Place::Lab {
        return forward::to_lab(None, output);
    }
    match command {
        VpsCommand::Create {
            guest,
            name,
            template,
            hostname,
            limits,
            autostart,
            no_reboot,
            no_start,
            init,
        } => {
            let spec = VpsSpec {
                name: name.clone(),
                template: template.clone(),
                hostname: hostname.clone(),
                init: if init.is_empty() {
                    Init::Template
                } else {
                    Init::Command(init.clone())
                },
                limits: limits_of(limits),
                autostart: *autostart,
                restart: if *no_reboot {
                    RestartPolicy::Never
                } else {
                    RestartPolicy::AllowReboot
                },
            };
            create(guest, spec, !no_start, place, output)
        }
        VpsCommand::Start { guest, names } => each(guest, names, output, |client, name| {
            Ok(Some(client.vps_start(name)?))
        }),
        VpsCommand::Stop {
            guest,
            names,
            timeout,
        } => each(guest, names, output, |client, name| {
            Ok(Some(client.vps_stop(name, *timeout)?))
        }),
        VpsCommand::Restart {
            guest,
            names,
            timeout,
        } => each(guest, names, output, |client, name| {
            Ok(Some(client.vps_restart(name, *timeout)?))
        }),
        VpsCommand::Destroy {
            guest,
            names,
            force,
        } => each(guest, names, output, |client, name| {
            client.vps_destroy(name, *force)?;
            Ok(None)
        }),
        VpsCommand::List { guest } => list(guest, output),
        VpsCommand::Console { guest, name } => {
            let client = connect(guest.guest.as_ref(), output)?;
            output.say(format!("console of {name}; Ctrl-] leaves it"));
            Streams::new(false, false).attach(client.console(name), Some(DETACH))
        }
        VpsCommand::Exec {
            guest,
            terminal,
            no_terminal,
            interactive: _,
            user,
            cwd,
            env,
            name,
            command,
        } => {
            let streams = Streams::new(*terminal, *no_terminal);
            let client = connect(guest.guest.as_ref(), output)?;
            let argv = if command.is_empty() {
                SHELL.map(str::to_owned).to_vec()
            } else {
                command.clone()
            };
            let session = client.exec(Exec {
                target: Target::Vps(name.clone()),
                argv,
                env: streams.environment(env),
                cwd: cwd.clone(),
                user: user.clone(),
                terminal: streams.terminal,
            });
            streams.attach(session, None)
        }
    }
}

/// Limits as the agent knows them.
pub(crate) fn limits_of(options: &LimitOptions) -> Limits {
    Limits {
        memory_bytes: options.memory.map(Size::bytes),
        cpu_milli: options.cpus,
        cpu_weight: options.cpu_weight,
        pids: options.pids,
    }
}

fn create(
    guest: &GuestChoice,
    spec: VpsSpec,
    start: bool,
    place: Place,
    output: &Output,
) -> Outcome {
    let endpoint = if let Some(dir) = choose(guest.guest.as_ref(), output)? {
        dir.endpoint()
    } else {
        let main: Name = MAIN.parse().map_err(Failure::usage)?;
        output.say(format!("no guest is running: starting guest {main}"));
        let mut options = MachineOptions::default();
        options.templates.push(spec.template.clone());
        machine::launch(&main, &options, &Purpose::default(), place, output)?.endpoint()
    };
    let mut client = Client::connect(&endpoint)?;
    let name = spec.name.clone();
    let mut info = client.vps_create(spec)?;
    if start {
        info = match client.vps_start(&name) {
            Ok(info) => info,
            Err(error) => {
                // All or nothing: it was not there before this command.
                let _ = client.vps_destroy(&name, true);
                return Err(error.into());
            }
        };
    }
    output.result(&describe(&info), || format!("VPS {name} is {}", info.state))
}

/// Does something to VPSs one after the other; the first failure ends it.
fn each(
    guest: &GuestChoice,
    names: &[Name],
    output: &Output,
    mut act: impl FnMut(&mut Client, &Name) -> Result<Option<VpsInfo>, Failure>,
) -> Outcome {
    let mut client = connect(guest.guest.as_ref(), output)?;
    let mut results = Vec::new();
    for name in names {
        let spinner = output.spinner(format!("VPS {name}"));
        let info = act(&mut client, name)?;
        drop(spinner);
        if let Some(info) = info {
            output.detail(format!("VPS {name} is {}", info.state));
            results.push(describe(&info));
        } else {
            output.detail(format!("VPS {name} is gone"));
            results.push(json!({"name": name.as_str(), "state": "destroyed"}));
        }
    }
    let value = match results.as_slice() {
        [one] => one.clone(),
        _ => json!(results),
    };
    output.result(&value, String::new)
}

fn list(guest: &GuestChoice, output: &Output) -> Outcome {
    let all = match choose(guest.guest.as_ref(), output)? {
        Some(dir) => Client::connect(&dir.endpoint())?.vps_list()?,
        None => Vec::new(),
    };
    let value: Vec<_> = all.iter().map(describe).collect();
    output.result(&value, || {
        if all.is_empty() {
            return "no VPS is defined".to_owned();
        }
        let mut table = table(&[
            "name",
            "state",
            "boots",
            "up",
            "memory",
            "cpu",
            "processes",
            "template",
            "last exit",
        ]);
        for vps in &all {
            let usage = vps.usage.as_ref();
            let state = match &vps.failure {
                Some(failure) if vps.state == VpsState::Failed => {
                    format!("failed: {}", plain(failure))
                }
                _ => vps.state.to_string(),
            };
            let limits = &vps.spec.limits;
            table.add_row([
                vps.spec.name.to_string(),
                state,
                vps.boot_count.to_string(),
                vps.uptime_ms
                    .map_or_else(String::new, |ms| uptime(Duration::from_millis(ms))),
                usage.map_or_else(String::new, |usage| {
                    of(
                        Size::new(usage.memory_bytes),
                        limits.memory_bytes.map(Size::new),
                    )
                }),
                usage.map_or_else(String::new, |usage| {
                    format!("{:.2} s", usage.cpu_us as f64 / 1e6)
                }),
                usage.map_or_else(String::new, |usage| of(usage.pids, limits.pids)),
                vps.spec.template.to_string(),
                vps.last_exit
                    .map_or_else(String::new, |exit| exit.to_string()),
            ]);
        }
        table.to_string()
    })
}

/// What is used, of what may be.
fn of<T: std::fmt::Display>(used: T, limit: Option<T>) -> String {
    match limit {
        Some(limit) => format!("{used} of {limit}"),
        None => used.to_string(),
    }
}

fn uptime(up: Duration) -> String {
    match up.as_secs() {
        0..60 => format!("{:.1} s", up.as_secs_f64()),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..86_400 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// A guest's text, without what could do something to a terminal.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// A VPS as JSON.
fn describe(info: &VpsInfo) -> Value {
    let spec = &info.spec;
    json!({
        "name": spec.name.as_str(),
        "state": info.state.to_string(),
        "template": spec.template.as_str(),
        "hostname": spec.hostname.as_ref().unwrap_or(&spec.name).as_str(),
        "init": match &spec.init {
            Init::Template => Value::Null,
            Init::Command(argv) => json!(argv),
        },
        "autostart": spec.autostart,
        "restart": spec.restart == RestartPolicy::AllowReboot,
        "limits": {
            "memory_bytes": spec.limits.memory_bytes,
            "cpu_milli": spec.limits.cpu_milli,
            "cpu_weight": spec.limits.cpu_weight,
            "pids": spec.limits.pids,
        },
        "boot_count": info.boot_count,
        "init_pid": info.init_pid,
        "uptime_ms": info.uptime_ms,
        "last_exit": info.last_exit.map(|exit| exit.to_string()),
        "failure": info.failure,
        "usage": info.usage.as_ref().map(|usage| json!({
            "memory_bytes": usage.memory_bytes,
            "memory_peak_bytes": usage.memory_peak_bytes,
            "cpu_us": usage.cpu_us,
            "pids": usage.pids,
            "oom_kills": usage.oom_kills,
            "pids_refused": usage.pids_refused,
        })),
    })
}

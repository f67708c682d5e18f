//! `insula guest`

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use guest_agent::client::Client;
use guest_agent::protocol::Name;
use serde::Serialize;
use serde_json::json;
use vmm::control::Done;
use vmm::guest::{
    Ended, GuestDir, GuestError, GuestRecord, GuestState, GuestStatus, RunRoot, Size, StartKind,
};

use crate::agent::sweep;
use crate::cli::{GuestCommand, On, StartOptions};
use crate::config_file;
use crate::failure::{Failure, Outcome};
use crate::forward;
use crate::lab;
use crate::machine::{self, Purpose};
use crate::memory_use;
use crate::output::{Output, print, table};
use crate::place::{self, Place};
use crate::profile::{self, Span};
use crate::snapshot;
use crate::top::{self, Figures};

/// Between two looks at a console that is followed.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

/// Runs an `insula guest` command.
pub(crate) fn main(command: &GuestCommand, on: Option<On>, output: &Output) -> Outcome {
    // A wrong file is told before a lab is started for it.
    let options = match command {
        GuestCommand::Start(start) => Some(config_file::complete(&start.machine)?),
        _ => None,
    };
    let place = place::decide(on, output)?;
    if place == Place::Lab {
        if matches!(command, GuestCommand::List { .. }) && !lab::is_up() {
            return output.result(&json!([]), || {
                "no guest is running (the lab is not up)".into()
            });
        }
        let kernel = options.and_then(|options| options.kernel);
        return forward::to_lab(kernel.as_deref(), output);
    }
    match command {
        GuestCommand::Start(StartOptions {
            name,
            profile,
            start,
            ..
        }) => {
            let purpose = Purpose {
                profile: *profile,
                cold: start.cold,
                ..Purpose::default()
            };
            let guest =
                machine::launch(name, &options.unwrap_or_default(), &purpose, place, output)?;
            let status = guest.dir().status()?;
            output.result(&status, || {
                format!("guest {name} is ready{}", start_time(&status))
            })
        }
        GuestCommand::List { memory: false } => list(output),
        GuestCommand::List { memory: true } => memory_use::list(output),
        GuestCommand::Top { once, interval } => top::main(*once, *interval, output),
        GuestCommand::Stop {
            names,
            all,
            timeout,
            kill,
        } => stop(
            names,
            *all,
            if *kill { Duration::ZERO } else { *timeout },
            output,
        ),
        GuestCommand::Pause { names } => each(names, GuestDir::pause, output),
        GuestCommand::Resume { names } => each(names, GuestDir::resume, output),
        GuestCommand::Snapshot(options) => snapshot::take(options, output),
        GuestCommand::Restore(options) => snapshot::restore(options, place, output),
        GuestCommand::Console { name, follow } => {
            let dir = RunRoot::for_user()?.find(name)?;
            show(&dir, &dir.console_path(), *follow)
        }
        GuestCommand::Log { name } => {
            let dir = RunRoot::for_user()?.find(name)?;
            show(&dir, &dir.vmm_log_path(), false)
        }
        GuestCommand::Profile {
            name,
            seconds,
            boot,
            top,
        } => {
            let span = if *boot {
                Span::Boot
            } else {
                Span::Now(Duration::from_secs(u64::from(*seconds)))
            };
            profile::main(name, span, *top, output)
        }
        GuestCommand::Status { name } => status(name, output),
    }
}

/// From the start of the process to the agent's answer, in words.
fn start_time(status: &GuestStatus) -> String {
    let at = |step: &str| status.spans.get(step).copied();
    let (Some(start), Some(first), Some(ready)) = (
        at("process_start"),
        at("first_instruction"),
        at("agent_ready"),
    ) else {
        return String::new();
    };
    let how = match status.start {
        Some(StartKind::Restored) => ", restored from a snapshot",
        _ => "",
    };
    format!(
        " after {} ms ({} ms of them in the guest){how}",
        ready.saturating_sub(start) / 1_000_000,
        ready.saturating_sub(first) / 1_000_000
    )
}

/// A guest in the list, for programs.
#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    status: GuestStatus,
    #[serde(flatten)]
    figures: Figures,
}

fn list(output: &Output) -> Outcome {
    let root = RunRoot::for_user()?;
    sweep(&root, output);
    let mut guests = Vec::new();
    let mut listed = Vec::new();
    for dir in root.guests()? {
        let status = dir.status()?;
        if output.is_json() {
            listed.push(Listed {
                status: status.clone(),
                figures: Figures::of(&dir),
            });
        }
        guests.push(status);
    }
    output.result(&listed, || {
        if guests.is_empty() {
            return "no guest is running".to_owned();
        }
        let mut table = table(&["name", "state", "vcpus", "memory", "up", "templates", "pid"]);
        for guest in &guests {
            let record = guest.record.as_ref();
            let state = match &guest.ended {
                Some(ended) => format!("{} ({ended})", guest.state),
                None => guest.state.to_string(),
            };
            table.add_row([
                guest.name.clone(),
                state,
                record.map_or_else(String::new, |r| r.vcpus.to_string()),
                record.map_or_else(String::new, memory),
                record.map_or_else(String::new, |r| since(r.started_at)),
                record.map_or_else(String::new, |r| r.templates.join(" ")),
                guest.pid.map_or_else(String::new, |pid| pid.to_string()),
            ]);
        }
        table.to_string()
    })
}

/// A guest's memory, and in what pages it is where that was chosen.
fn memory(record: &GuestRecord) -> String {
    let size = Size::new(record.memory_bytes);
    if record.huge_pages {
        format!("{size} (huge pages)")
    } else {
        size.to_string()
    }
}

/// How long ago that was, in the largest unit that fits.
fn since(started_at: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let seconds = now.saturating_sub(started_at);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn stop(names: &[Name], all: bool, patience: Duration, output: &Output) -> Outcome {
    let root = RunRoot::for_user()?;
    let dirs = if all {
        root.guests()?
    } else {
        names
            .iter()
            .map(|name| root.find(name))
            .collect::<Result<Vec<_>, _>>()?
    };
    let mut reports = Vec::new();
    for dir in &dirs {
        let spinner = output.spinner(format!("stopping guest {}", dir.name()));
        let ended = dir.stop(patience)?;
        drop(spinner);
        reports.push(json!({
            "name": dir.name().as_str(),
            "exit": ended.word(),
            "exit_code": ended.exit_code(),
        }));
        match ended {
            Ended::Clean => output.detail(format!("guest {} powered off", dir.name())),
            Ended::Signal(_) if patience.is_zero() => {}
            other => output.say(format!("guest {}: {other}", dir.name())),
        }
    }
    let value = match (reports.as_slice(), all) {
        ([report], false) => report.clone(),
        _ => json!(reports),
    };
    output.result(&value, String::new)
}

/// Has each guest's machine do something.
fn each(
    names: &[Name],
    order: impl Fn(&GuestDir) -> Result<Done, GuestError>,
    output: &Output,
) -> Outcome {
    let root = RunRoot::for_user()?;
    let mut reports = Vec::new();
    for name in names {
        let done = order(&root.find_living(name)?)?;
        reports.push(json!({ "name": name.as_str(), "state": done.state }));
    }
    output.result(&reports, String::new)
}

/// Prints a file as it is, and what is added to it as long as the guest lives.
fn show(dir: &GuestDir, path: &Path, follow: bool) -> Outcome {
    let failed =
        |error: io::Error| Failure::new(format!("cannot read {}: {error}", path.display()));
    let mut file = File::open(path).map_err(failed)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        // Asked first: what is written before the end is read after it.
        let lives = dir.is_alive()?;
        loop {
            let count = file.read(&mut buffer).map_err(failed)?;
            if count == 0 {
                break;
            }
            let mut stdout = io::stdout().lock();
            match stdout
                .write_all(&buffer[..count])
                .and_then(|()| stdout.flush())
            {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
                written => written.map_err(failed)?,
            }
        }
        if !follow || !lives {
            return Ok(0);
        }
        // The log starts again when it has reached its greatest length.
        let position = file.stream_position().map_err(failed)?;
        if file.metadata().map_err(failed)?.len() < position {
            file.seek(SeekFrom::Start(0)).map_err(failed)?;
        }
        thread::sleep(FOLLOW_INTERVAL);
    }
}

fn status(name: &Name, output: &Output) -> Outcome {
    let dir = RunRoot::for_user()?.find(name)?;
    let status = dir.status()?;
    let info = match status.state {
        GuestState::Running => Client::connect(&dir.endpoint())
            .and_then(|mut c| c.info())
            .ok(),
        _ => None,
    };
    let mut value = serde_json::to_value(&status)
        .map_err(|error| Failure::new(format!("cannot print the result: {error}")))?;
    if let Some(info) = &info {
        value["agent"] = json!({
            "kernel": info.kernel,
            "cpus": info.cpus,
            "memory_bytes": info.memory_bytes,
            "memory_available_bytes": info.memory_available_bytes,
            "uptime_ms": info.uptime_ms,
            "agent_resident_bytes": info.agent_resident_bytes,
            "templates": info.templates.iter().map(Name::as_str).collect::<Vec<_>>(),
            "vps_count": info.vps_count,
        });
    }
    if output.is_json() {
        return output.result(&value, String::new);
    }
    let mut lines = vec![format!(
        "guest {name}: {}{}",
        status.state,
        start_time(&status)
    )];
    if let Some(ended) = &status.ended {
        lines.push(format!("  ended      {ended}"));
    }
    if let Some(start) = status.start {
        let how = match start {
            StartKind::Cold => "cold: its kernel booted",
            StartKind::Restored => "restored from a snapshot",
        };
        lines.push(format!("  start      {how}"));
    }
    if status.record.is_some_and(|record| record.huge_pages) {
        lines.push("  pages      huge ones, where the host has them".to_owned());
    }
    if let Some(info) = info {
        lines.push(format!(
            "  kernel     Linux {} on {} CPUs",
            info.kernel, info.cpus
        ));
        lines.push(format!(
            "  memory     {} available of {}",
            Size::new(info.memory_available_bytes),
            Size::new(info.memory_bytes)
        ));
        lines.push(format!("  VPSs       {}", info.vps_count));
        lines.push(format!(
            "  agent      {} resident",
            Size::new(info.agent_resident_bytes)
        ));
    }
    lines.push(format!("  directory  {}", dir.path().display()));
    print(&(lines.join("\n") + "\n"))
}

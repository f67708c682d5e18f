//! `insula lab`, and running commands in the lab for others.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use images::lab::{self, Command, Lab, LabConfig, LabError, Payload, Status};
use images::{Cache, Request, Store};
use serde_json::json;
use vmm::guest::STARTS_LOG_ENV;

use crate::cli::{COLD_ENV, LabCommand};
use crate::companions;
use crate::failure::{Failure, Outcome};
use crate::output::{Output, table};

/// Variables that are carried into the lab.
const CARRIED: [&str; 3] = ["INSULA_GUEST", "RUST_BACKTRACE", COLD_ENV];
/// How long it may take there to show a small file.
const CHORE: Duration = Duration::from_secs(30);

/// Runs an `insula lab` command.
pub(crate) fn main(command: &LabCommand, output: &Output) -> Outcome {
    if crate::place::is_lab() {
        return Err(Failure::usage("this is the lab already"));
    }
    match command {
        LabCommand::Start { icount } => {
            let lab = ensure(*icount, output)?;
            sync(&lab, &[], output)?;
            drop(lab);
            let status = status_of(*icount)?;
            output.result(&status, || "the lab is up".to_owned())
        }
        LabCommand::Stop { icount } => {
            let ran = lab::stop(*icount)?;
            if !ran {
                output.say("the lab was not up");
            }
            output.result(&json!({"stopped": ran}), String::new)
        }
        LabCommand::Status { icount: _ } => status(output),
        LabCommand::Run { icount, command } => {
            let lab = ensure(*icount, output)?;
            sync(&lab, &[], output)?;
            run(&lab, command.clone())
        }
        LabCommand::Shell { icount } => {
            let lab = ensure(*icount, output)?;
            sync(&lab, &[], output)?;
            run(&lab, vec!["bash".to_owned(), "-l".to_owned()])
        }
    }
}

/// Runs one of our programs in the lab, with `files` at their places there.
pub(crate) fn run_ours(argv: Vec<String>, files: &[(PathBuf, String)], output: &Output) -> Outcome {
    let lab = ensure(false, output)?;
    sync(&lab, files, output)?;
    run(&lab, argv)
}

/// Whether the lab is up. It is not started to find out.
pub(crate) fn is_up() -> bool {
    status_of(false).is_ok_and(|status| status.is_some_and(|status| status.pid.is_some()))
}

fn ensure(icount: bool, output: &Output) -> Result<Lab, Failure> {
    let config = LabConfig::new(icount, Cache::user()?)?;
    if status_of(icount)?.is_none_or(|status| status.pid.is_none()) {
        // In one go, before the start needs some: what can be is built side by side.
        Store::user()?.ensure_all(&Request::IN_LAB, &output.progress())?;
    }
    Ok(Lab::ensure(&config, &output.progress())?)
}

/// Brings our programs, the images and `files` into the lab, as far as it does
/// not have them.
fn sync(lab: &Lab, files: &[(PathBuf, String)], output: &Output) -> Result<(), Failure> {
    let mut payload = Payload::new();
    payload.program(&companions::own()?)?;
    payload.program(&companions::machine_process(output)?)?;
    let images = Store::user()?.ensure_all(&Request::DEFAULT, &output.progress())?;
    for image in &images {
        payload.image(&image.entry)?;
    }
    for (path, place) in files {
        payload.file(path, place)?;
    }
    let synced = lab.sync(&mut payload)?;
    if synced.files > 0 {
        output.detail(format!(
            "brought {} files ({} bytes) into the lab in {} ms",
            synced.files,
            synced.bytes,
            synced.took.as_millis()
        ));
    }
    Ok(())
}

fn run(lab: &Lab, argv: Vec<String>) -> Outcome {
    let mut command = Command::new(argv).env("INSULA_ON", "hardware");
    for name in CARRIED {
        if let Ok(value) = std::env::var(name) {
            command = command.env(name, value);
        }
    }
    command.terminal = true; // when we have one
    let Some(log) = std::env::var_os(STARTS_LOG_ENV).filter(|path| !path.is_empty()) else {
        return Ok(lab.run(&command)?);
    };
    let inside = format!("/run/insula-starts-{}", std::process::id());
    let code = lab.run(&command.env(STARTS_LOG_ENV, &inside))?;
    bring_starts(lab, &inside, Path::new(&log));
    Ok(code)
}

/// Adds the starts that a command noted in the lab to the log here; what
/// cannot be brought is lost, since a command does not fail for a statistic.
fn bring_starts(lab: &Lab, inside: &str, log: &Path) {
    const SCRIPT: &str = "if [ -e \"$0\" ]; then cat \"$0\"; rm \"$0\"; fi";
    let Ok(lines) = lab.capture(&Command::new(["sh", "-c", SCRIPT, inside]), b"", CHORE) else {
        return;
    };
    let _ = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .and_then(|mut file| file.write_all(&lines.stdout));
}

fn status_of(icount: bool) -> Result<Option<Status>, Failure> {
    let name = if icount { "icount" } else { "default" };
    Ok(lab::status()?
        .into_iter()
        .find(|status| status.name == name))
}

fn status(output: &Output) -> Outcome {
    let all = lab::status()?;
    output.result(&all, || {
        let mut table = table(&["lab", "state", "cpus", "memory", "up", "in use", "pid"]);
        for status in &all {
            let shape = status.shape.as_ref();
            table.add_row([
                status.name.to_owned(),
                if status.pid.is_some() { "up" } else { "down" }.to_owned(),
                shape.map_or_else(String::new, |shape| shape.cpus.to_string()),
                shape.map_or_else(String::new, |shape| format!("{} MiB", shape.memory_mib)),
                status.started_at.map_or_else(String::new, minutes_since),
                if status.in_use { "yes" } else { "no" }.to_owned(),
                status.pid.map_or_else(String::new, |pid| pid.to_string()),
            ]);
        }
        table.to_string()
    })
}

fn minutes_since(started_at: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    format!("{} min", now.saturating_sub(started_at) / 60)
}

impl From<LabError> for Failure {
    fn from(error: LabError) -> Self {
        let code = match &error {
            LabError::Daemon(error) => error.shell_code(),
            _ => None,
        };
        let failure = Self::from(anyhow::Error::from(error));
        match code {
            Some(code) => failure.with_code(code),
            None => failure,
        }
    }
}

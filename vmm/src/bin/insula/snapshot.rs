//! `insula guest snapshot` and `insula guest restore`

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use guest_agent::protocol::Name;
use serde_json::{Value, json};
use vmm::guest::{Guest, GuestError, GuestStatus, RestoreSpec, RunRoot, Size, SnapshotOptions};

use crate::cli::{RestoreOptions, TakeOptions};
use crate::companions;
use crate::failure::{Failure, Outcome};
use crate::interrupt::Interrupt;
use crate::output::{Output, table};
use crate::place::{self, Place};

/// Guests that are restored at once, if there are as many processors.
const MOST_AT_ONCE: usize = 8;

/// `insula guest snapshot`
pub(crate) fn take(options: &TakeOptions, output: &Output) -> Outcome {
    let name = &options.name;
    let dir = RunRoot::for_user()?.find_living(name)?;
    let directory = absolute(&options.directory)?;
    let spinner = output.spinner(format!("taking a snapshot of guest {name}"));
    let taken = dir.snapshot(
        &directory,
        SnapshotOptions {
            incremental: options.incremental,
            track: !options.stop,
            stop: options.stop,
        },
    )?;
    drop(spinner);
    let value = json!({
        "name": name.as_str(),
        "directory": directory,
        "id": taken.id,
        "incremental": options.incremental,
        "memory_bytes": taken.memory_bytes,
        "state_bytes": taken.state_bytes,
        "paused_ns": taken.paused_ns,
        "stopped": options.stop,
    });
    output.result(&value, || {
        let end = if options.stop {
            "it is stopped".to_owned()
        } else {
            format!("it stood still for {} ms", taken.paused_ns / 1_000_000)
        };
        format!(
            "snapshot of guest {name} in {}: {} of memory; {end}",
            directory.display(),
            Size::new(taken.memory_bytes)
        )
    })
}

/// `insula guest restore`
pub(crate) fn restore(options: &RestoreOptions, place: Place, output: &Output) -> Outcome {
    let names = names(options)?;
    place::kvm_for(place)?;
    companions::machine_process(output)?;
    let spec = RestoreSpec {
        snapshot: absolute(&options.directory)?,
        hostname: options.hostname.clone(),
        prefetch: options.prefetch,
        huge_pages: options.huge_pages,
        force: options.force,
        passing: false,
        ephemeral: false,
    };
    let interrupt = Interrupt::catch()?;
    interrupt.check()?;
    let root = RunRoot::for_user()?;
    let spinner = output.spinner(format!("restoring {} guests", names.len()));
    let results = all(&names, |name| one(&root, name, &spec, interrupt));
    drop(spinner);
    interrupt.check()?;
    if let ([name], None) = (names.as_slice(), options.count) {
        let mut results = results;
        let status = results.pop().unwrap_or_else(|| Err(lost(name)))?;
        return output.result(&status, || {
            format!("guest {name} is ready{}", took(&status))
        });
    }
    report(&names, results, output)
}

fn lost(name: &Name) -> Failure {
    Failure::new(format!("guest {name} was not restored"))
}

/// The names that the guests get.
fn names(options: &RestoreOptions) -> Result<Vec<Name>, Failure> {
    let name = &options.name;
    match options.count {
        None => Ok(vec![name.clone()]),
        Some(count) => (1..=count.get())
            .map(|number| format!("{name}-{number}").parse().map_err(Failure::usage))
            .collect(),
    }
}

fn one(
    root: &RunRoot,
    name: &Name,
    spec: &RestoreSpec,
    interrupt: Interrupt,
) -> Result<GuestStatus, Failure> {
    let guest: Guest = root.reserve(name)?.restore(spec, Some(interrupt.fd()))?;
    Ok(guest.dir().status()?)
}

/// Does something for each name, some at once; the results are in their order.
fn all<T: Send>(
    names: &[Name],
    act: impl Fn(&Name) -> Result<T, Failure> + Sync,
) -> Vec<Result<T, Failure>> {
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = threads.min(MOST_AT_ONCE).min(names.len());
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(name) = names.get(index) else {
                        return;
                    };
                    let result = act(name);
                    let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                    results.push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Says what came up. The exit code is that of the first that did not.
fn report(names: &[Name], results: Vec<Result<GuestStatus, Failure>>, output: &Output) -> Outcome {
    let mut table = table(&["name", "state", "ready after", "pid", "error"]);
    let mut values = Vec::new();
    let mut code = 0;
    for (name, result) in names.iter().zip(results) {
        match result {
            Ok(status) => {
                table.add_row([
                    name.to_string(),
                    status.state.to_string(),
                    took(&status).trim_start_matches(" after ").to_owned(),
                    status.pid.map_or_else(String::new, |pid| pid.to_string()),
                    String::new(),
                ]);
                values.push(json!(status));
            }
            Err(failure) => {
                if code == 0 {
                    code = failure.code();
                }
                let text = failure.to_string();
                eprintln!("insula: {text}");
                let line = text.lines().next().unwrap_or_default().to_owned();
                table.add_row([name.as_str(), "failed", "", "", &line]);
                values.push(json!({ "name": name.as_str(), "error": text }));
            }
        }
    }
    output.result(&Value::from(values), || table.to_string())?;
    Ok(code)
}

/// From the start of the process to the agent's answer, in words.
fn took(status: &GuestStatus) -> String {
    let at = |step: &str| status.spans.get(step).copied();
    match (at("process_start"), at("agent_ready")) {
        (Some(start), Some(ready)) => {
            format!(" after {} ms", ready.saturating_sub(start) / 1_000_000)
        }
        _ => String::new(),
    }
}

/// The machine process has another working directory than the user.
fn absolute(path: &Path) -> Result<std::path::PathBuf, Failure> {
    std::path::absolute(path).map_err(|source| {
        Failure::from(GuestError::Io {
            action: "find",
            path: path.to_owned(),
            source,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_has_a_turn_and_keeps_its_place() {
        let names: Vec<Name> = (0..40)
            .map(|number| format!("n-{number}").parse().unwrap())
            .collect();
        let results = all(&names, |name| {
            if name.as_str() == "n-7" {
                return Err(Failure::new("no"));
            }
            Ok(name.clone())
        });
        assert_eq!(results.len(), names.len());
        for (name, result) in names.iter().zip(results) {
            match result {
                Ok(found) => assert_eq!(*name, found),
                Err(_) => assert_eq!(name.as_str(), "n-7"),
            }
        }
    }
}

//! `insula-compare`: compares isolation models and reports.

mod arguments;
mod lab;
mod place;
mod registry;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Parser;

use arguments::{Action, Arguments, RunOptions};
use compare::environment::{Environment, HostKind, memory_field};
use compare::metric::Measurement;
use compare::models::ModelId;
use compare::plan::{Plan, Wishes};
use compare::progress::Progress;
use compare::report::{self, Summary};
use compare::result::{FORMAT, Header, VERSION, Writer, read};
use compare::run::{Run, warm_up};
use place::Place;

/// A run that was interrupted, and reported what it had.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.action {
        Some(Action::Report { directory, json }) => report_saved(directory, *json),
        None => start(&arguments.run),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("insula-compare: {}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, without those that it tells itself.
fn explain(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |said, cause| {
        let cause = cause.to_string();
        match said.as_str() {
            "" => cause,
            known if known.contains(&cause) => said,
            _ => format!("{said}: {cause}"),
        }
    })
}

/// Renders saved samples again.
fn report_saved(directory: &Path, json: bool) -> anyhow::Result<u8> {
    let recording = read(directory)?;
    let summary = Summary::new(&recording);
    let into = if directory.is_dir() {
        directory
    } else {
        directory.parent().unwrap_or(directory)
    };
    let page = report::write(into, &recording, &summary)?;
    show(&summary, json)?;
    eprintln!("report: {}", page.display());
    Ok(0)
}

fn show(summary: &Summary, json: bool) -> anyhow::Result<()> {
    use std::io::Write;
    let text = if json {
        serde_json::to_string_pretty(summary)? + "\n"
    } else {
        report::terminal(summary)
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // Nobody reads any more: the files are there all the same.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

/// Compares, here or in the lab.
fn start(options: &RunOptions) -> anyhow::Result<u8> {
    let seed = options.seed.map_or_else(fresh_seed, Ok)?;
    // Before anything takes time: the directory is the caller's mistake to make.
    let directory = options.out.clone().unwrap_or_else(default_directory);
    if directory.join("samples.jsonl").exists() {
        bail!(
            "{} holds a result already: choose another directory with --out",
            directory.display()
        );
    }
    let code = match place::decide(options.on)? {
        Place::Lab => lab::compare(&options.for_lab(seed), &directory)?,
        place => compare(options, seed, &directory, place)?,
    };
    if options.collect || !directory.join("samples.jsonl").exists() {
        return Ok(code);
    }
    let recording = read(&directory)?;
    let summary = Summary::new(&recording);
    let page = report::write(&directory, &recording, &summary)?;
    show(&summary, options.json)?;
    eprintln!("samples and report: {}", page.display());
    Ok(code)
}

/// Compares on this machine, and leaves the samples in `directory`.
fn compare(options: &RunOptions, seed: u64, directory: &Path, place: Place) -> anyhow::Result<u8> {
    let stop = stop_on_signals()?;
    let mut environment = Environment::capture();
    if place == Place::Pvm {
        environment.host = HostKind::Pvm;
        guest_agent::client::wait_longer(20);
    }
    let wishes = Wishes {
        profile: options.profile,
        seed,
        models: wanted(&options.models, &ModelId::ALL),
        measurements: wanted(&options.only, &Measurement::ALL),
        blocks: options.blocks,
    };
    let mut plan = Plan::new(&wishes, environment.host);
    let mut registry = registry::build(&wishes.models, &environment)?;
    let progress = Progress::on_stderr();
    let started = Instant::now();
    let (costs, failed) = warm_up(
        &mut plan,
        &mut *registry.baseline,
        &mut registry.models,
        &stop,
        &progress,
    )?;
    registry.unavailable.extend(failed);
    registry.unavailable.sort_by_key(|model| model.model);
    if stop.load(Ordering::Relaxed) {
        progress.finish();
        eprintln!("interrupted before anything was measured");
        return Ok(INTERRUPTED);
    }
    if plan.models.is_empty() {
        for model in &registry.unavailable {
            eprintln!("{} does not run: {}", model.model, model.reason);
        }
        bail!("no model runs here: nothing to compare");
    }
    if let Some(available) = memory_field("MemAvailable") {
        plan.fit_memory(available / 2);
    }
    plan.fit(
        &costs,
        options.blocks.is_some(),
        started.elapsed().as_secs_f64(),
    );

    let header = Header {
        format: FORMAT.into(),
        version: VERSION,
        conditions: registry
            .models
            .iter()
            .map(|model| model.conditions())
            .collect(),
        unavailable: registry.unavailable,
        plan,
        environment,
    };
    progress.note(&announcement(
        &header,
        (!options.collect).then_some(directory),
    ));
    let writer = Writer::create(directory, &header)?;
    let run = Run {
        plan: &header.plan,
        models: &mut registry.models,
        writer,
        stop: Arc::clone(&stop),
        progress: &progress,
    };
    run.run()?;
    Ok(if stop.load(Ordering::Relaxed) {
        INTERRUPTED
    } else {
        0
    })
}

/// What will be done, how long it takes and where it goes, where that is the
/// caller's directory.
fn announcement(header: &Header, directory: Option<&Path>) -> String {
    let plan = &header.plan;
    let names = |items: Vec<String>| items.join(", ");
    let mut lines = vec![
        format!(
            "models:       {}",
            names(plan.models.iter().map(ToString::to_string).collect())
        ),
        format!(
            "measurements: {}",
            names(plan.measurements.iter().map(ToString::to_string).collect())
        ),
        format!("plan:         {}", in_words(plan)),
        format!(
            "time:         about {} min {:02} s",
            plan.estimate_s / 60,
            plan.estimate_s % 60
        ),
    ];
    if let Some(directory) = directory {
        lines.push(format!("results in:   {}", directory.display()));
    }
    if let Some(mark) = header.environment.host.mark() {
        lines.push(format!("note:         {mark}"));
    }
    if plan.is_indicative() {
        lines.push("note:         few blocks: indicative, no verdicts".to_owned());
    }
    for adjustment in &plan.adjustments {
        lines.push(format!("note:         {adjustment}"));
    }
    for model in &header.unavailable {
        lines.push(format!("not compared: {}: {}", model.model, model.reason));
    }
    lines.join("\n")
}

/// How much of what is done.
fn in_words(plan: &Plan) -> String {
    let mut parts = vec![format!("{} blocks", plan.blocks)];
    if !plan.work.is_empty() {
        parts.push(format!("work of {} ms", plan.work_ms));
    }
    if plan.measures(Measurement::StartCold) {
        parts.push(format!(
            "{} cold starts a model and block",
            plan.cold_starts
        ));
    }
    if plan.measures(Measurement::StartRestore) {
        parts.push(format!("{} restored starts", plan.restores));
    }
    if plan.measures(Measurement::StartBurst) {
        let sizes: Vec<String> = plan
            .bursts
            .iter()
            .filter_map(|metric| metric.burst())
            .map(|count| count.to_string())
            .collect();
        parts.push(format!(
            "bursts of {} in {} blocks",
            sizes.join(", "),
            plan.burst_blocks
        ));
    }
    if plan.measures(Measurement::DensityMem) {
        parts.push(format!(
            "density in {} steps in {} blocks",
            plan.density_steps, plan.density_blocks
        ));
    }
    parts.push(format!("seed {}", plan.seed));
    parts.join(", ")
}

/// What was asked for, in the order of reports; all when nothing was.
fn wanted<T: Copy + PartialEq>(asked: &[T], all: &[T]) -> Vec<T> {
    all.iter()
        .copied()
        .filter(|item| asked.is_empty() || asked.contains(item))
        .collect()
}

fn fresh_seed() -> anyhow::Result<u64> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .context("cannot draw a seed: give one with --seed")?;
    // Short enough to be typed.
    Ok(u64::from(u32::from_le_bytes(bytes)))
}

fn default_directory() -> PathBuf {
    let seconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    PathBuf::from("compare-results").join(compare::environment::utc_stamp(seconds))
}

/// A flag that the first SIGINT, SIGTERM or SIGHUP sets; a second one ends the
/// program at once.
fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: the shutdown looks at the flag before it is set.
        signal_hook::flag::register_conditional_shutdown(
            signal,
            i32::from(INTERRUPTED),
            Arc::clone(&stop),
        )
        .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
        .with_context(|| format!("cannot watch for signal {signal}"))?;
    }
    Ok(stop)
}

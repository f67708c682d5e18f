//! The bounds that insula holds itself to, each measured by one command.
//!
//! `cargo bounds boot|vmm-cost|host-vps|agent|restore|clones|snapshot|pvm|all
//! [--runs N] [--json FILE]`.
//! Everything but `pvm` runs in the lab with `--icount`, where the clock advances a
//! nanosecond for each instruction of host kernel, KVM, VMM, guest kernel and
//! guest programs together: the figures are million instructions, and repeat.
//!
//! Exit codes: 0 every bound holds, 1 one does not, 2 it could not be measured.

mod agent;
mod boot;
mod checkout;
mod clones;
mod pvm;
mod restore;
mod rivals;
mod snapshot;
mod started;
mod workbench;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use serde_json::Value;

use workbench::Workbench;

/// Measure the bounds that insula holds itself to, in the lab with --icount
#[derive(Debug, Parser)]
#[command(name = "bench-bounds", version)]
struct Arguments {
    /// Which bound
    #[arg(value_enum)]
    bound: Bound,
    /// How often each program is run [default: 5 boots, 11 machine
    /// processes and restores, 21 VPSs]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: Option<u32>,
    /// Write every figure to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bound {
    /// A boot, against an untrimmed kernel of the same features
    Boot,
    /// The machine process, against the bare sequence of KVM calls
    VmmCost,
    /// A VPS on the bare host, against bare system calls, crun and runc
    HostVps,
    /// The agent's size, in its file and in memory
    Agent,
    /// A restore, against the bare sequence of KVM calls, and against a boot
    Restore,
    /// What clones of one guest take of the host's memory
    Clones,
    /// What a snapshot writes, against the pages that are not zero
    Snapshot,
    /// On a PVM host: a boot and a system call, in emulated instructions and
    /// exits on this machine's own KVM
    Pvm,
    /// All of them that are measured in the lab
    All,
}

/// What a bound's measurement came to.
struct Verdict {
    /// Whether the bound holds.
    holds: bool,
    /// Every figure.
    figures: Value,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match measure(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("bench-bounds: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn measure(arguments: &Arguments) -> Result<bool> {
    let wanted = |bound| arguments.bound == Bound::All || arguments.bound == bound;
    // What spreads more is run more often.
    let runs = |default| arguments.runs.unwrap_or(default);
    let mut results = serde_json::Map::new();
    let mut all_hold = true;
    let mut add = |name: &str, verdict: Verdict| {
        println!(
            "{name}: the bound {}\n",
            if verdict.holds {
                "holds"
            } else {
                "DOES NOT HOLD"
            }
        );
        all_hold &= verdict.holds;
        results.insert(name.to_owned(), verdict.figures);
    };
    if arguments.bound == Bound::Pvm {
        add("pvm", pvm::measure(runs(3))?);
    } else {
        let bench = Workbench::set_up(wanted(Bound::Boot))?;
        if wanted(Bound::Boot) {
            add("boot", boot::measure(&bench, runs(5))?);
        }
        if wanted(Bound::VmmCost) {
            add("vmm-cost", rivals::vmm_cost(&bench, runs(11))?);
        }
        if wanted(Bound::HostVps) {
            add("host-vps", rivals::host_vps(&bench, runs(21))?);
        }
        if wanted(Bound::Agent) {
            add("agent", agent::measure(&bench)?);
        }
        if wanted(Bound::Restore) {
            add("restore", restore::measure(&bench, runs(11))?);
        }
        if wanted(Bound::Clones) {
            add("clones", clones::measure(&bench)?);
        }
        if wanted(Bound::Snapshot) {
            add("snapshot", snapshot::measure(&bench)?);
        }
    }
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_vec_pretty(&results)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(all_hold)
}

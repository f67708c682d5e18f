//! Restoring a guest of 128 MiB: to its first instruction, against the bare
//! sequence of KVM calls with one mapping; and to its agent's first answer,
//! against a boot.

use anyhow::{Context, Result};
use serde_json::json;

use crate::Verdict;
use crate::started::{GUEST, Started, middle, spread, stop};
use crate::workbench::Workbench;

/// At most so many times the bare calls.
const GOAL_FLOOR: f64 = 1.5;
/// At most this part of a boot.
const GOAL_BOOT: f64 = 0.1;

pub(crate) fn measure(bench: &Workbench, runs: u32) -> Result<Verdict> {
    let floor = floor(bench, runs)?;
    let mut boots = Vec::new();
    let snapshot = Workbench::place("snapshot");
    for run in 0..runs {
        let booted = Started::cold(bench, &[])?;
        boots.push(booted.between("process_start", "agent_ready")?);
        if run == 0 {
            take_snapshot(bench, &snapshot)?;
        }
        stop(bench, GUEST)?;
    }
    let (mut first, mut ready) = (Vec::new(), Vec::new());
    for run in 0..=runs {
        let restored = Started::by(bench, &["guest", "restore", &snapshot, "--name", GUEST])?;
        // The first finds its pages on disk: not counted.
        if run > 0 {
            first.push(restored.between("process_start", "first_instruction")?);
            ready.push(restored.between("process_start", "agent_ready")?);
        }
        stop(bench, GUEST)?;
    }

    println!("1 vCPU, 128 MiB, from the start of the machine process: million instructions");
    println!("(median; least to most)");
    for (what, values) in [
        ("bare KVM calls and one mmap, to the first KVM_RUN", &floor),
        ("restored, to the first instruction", &first),
        ("restored, to the agent's first answer", &ready),
        ("booted, to the agent's first answer", &boots),
    ] {
        println!("{what:<52} {:>26}", spread(values));
    }
    let to_floor = middle(&first) / middle(&floor);
    let to_boot = middle(&ready) / middle(&boots);
    println!(
        "restored / bare, to the first instruction: {to_floor:.3}; goal: at most {GOAL_FLOOR}"
    );
    println!("restored / booted, to the first answer: {to_boot:.4}; goal: at most {GOAL_BOOT}");
    Ok(Verdict {
        holds: to_floor <= GOAL_FLOOR && to_boot <= GOAL_BOOT,
        figures: json!({"unit": "million instructions",
            "first_instruction": {"ratio": to_floor, "goal": GOAL_FLOOR,
                "insula": first, "bare": floor},
            "first_answer": {"ratio": to_boot, "goal": GOAL_BOOT,
                "restored": ready, "booted": boots}}),
    })
}

/// Takes a snapshot of the guest into a directory that is not there yet.
pub(crate) fn take_snapshot(bench: &Workbench, directory: &str) -> Result<String> {
    bench.run(&["rm", "-rf", directory])?;
    bench.run(&["insula", "--json", "guest", "snapshot", GUEST, directory])
}

/// What the bare calls take, of as many runs.
fn floor(bench: &Workbench, runs: u32) -> Result<Vec<f64>> {
    let program = Workbench::place("restore_floor");
    let (state, memory) = (
        Workbench::place("floor.state"),
        Workbench::place("floor.memory"),
    );
    bench.run(&[&program, "save", &state, &memory])?;
    let count = (runs + 1).to_string();
    let output = bench.run(&[&program, "time", &state, &memory, &count])?;
    output
        .lines()
        .skip(1)
        .map(|line| {
            let ns: f64 = line
                .trim()
                .parse()
                .with_context(|| format!("restore_floor printed {line:?}"))?;
            Ok(ns / 1e6)
        })
        .collect()
}

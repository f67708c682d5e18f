//! What clones of one idle guest of 128 MiB take of the host's memory.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::Verdict;
use crate::restore::take_snapshot;
use crate::started::{GUEST, Started, stop};
use crate::workbench::Workbench;

/// How many there are at once.
const CLONES: usize = 50;
/// Most bytes for each, by proportional set size.
const GOAL: f64 = 8.0 * 1024.0 * 1024.0;
/// What their names begin with.
const PREFIX: &str = "clone";

pub(crate) fn measure(bench: &Workbench) -> Result<Verdict> {
    Started::cold(bench, &[])?;
    let snapshot = Workbench::place("snapshot");
    let taken = take_snapshot(bench, &snapshot);
    stop(bench, GUEST)?;
    taken?;

    let count = CLONES.to_string();
    let restored = bench.run(&[
        "insula", "--quiet", "guest", "restore", &snapshot, "--count", &count, "--name", PREFIX,
    ]);
    let listed =
        restored.and_then(|_| bench.run(&["insula", "--json", "guest", "list", "--memory"]));
    // Whatever became of it, they are not left.
    bench.run(&["insula", "--quiet", "guest", "stop", "--all", "--kill"])?;
    let listed: Value = serde_json::from_str(&listed?).context("the list is not JSON")?;
    let clones: Vec<&Value> = listed
        .as_array()
        .into_iter()
        .flatten()
        .filter(|guest| {
            let name = guest["name"].as_str();
            name.is_some_and(|name| name.starts_with(PREFIX))
        })
        .collect();
    ensure!(
        clones.len() == CLONES,
        "{} clones are listed, not {CLONES}: {listed}",
        clones.len()
    );
    report(&clones)
}

/// What each part of a clone takes on average, by part and kind of size.
type Shares = BTreeMap<&'static str, BTreeMap<&'static str, f64>>;

/// The parts that the list tells apart, and the sizes of each.
const PARTS: [&str; 3] = ["total", "guest", "vmm"];
const SIZES: [&str; 4] = ["pss", "rss", "private", "shared"];

fn report(clones: &[&Value]) -> Result<Verdict> {
    let size = |clone: &Value, part: &str, kind: &str| {
        clone["memory"][part][kind]
            .as_f64()
            .with_context(|| format!("no {kind} of {part} in {clone}"))
    };
    let mut each = Shares::new();
    for part in PARTS {
        for kind in SIZES {
            let mut sum = 0.0;
            for clone in clones {
                sum += size(clone, part, kind)?;
            }
            let mean = sum / clones.len() as f64;
            each.entry(part).or_default().insert(kind, mean);
        }
    }
    let mut all = Vec::new();
    for clone in clones {
        all.push(size(clone, "total", "pss")?);
    }
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let most = all.iter().copied().fold(0.0, f64::max);

    println!("{CLONES} clones of an idle guest of 128 MiB, each on average, in MiB:");
    print!("  {:<8}", "part");
    for kind in SIZES {
        print!("{kind:>10}");
    }
    println!();
    for (part, sizes) in PARTS
        .iter()
        .filter_map(|part| Some((part, each.get(part)?)))
    {
        print!("  {part:<8}");
        for kind in SIZES {
            print!(
                "{:>10.2}",
                mib(sizes.get(kind).copied().unwrap_or(f64::NAN))
            );
        }
        println!();
    }
    println!(
        "proportional set size: {:.2} MiB each, {:.2} at most; goal: at most {:.0} each",
        mib(mean),
        mib(most),
        mib(GOAL)
    );
    Ok(Verdict {
        holds: most <= GOAL,
        figures: json!({"unit": "bytes", "clones": clones.len(), "each": each, "mean_pss": mean,
            "most_pss": most, "goal": GOAL}),
    })
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

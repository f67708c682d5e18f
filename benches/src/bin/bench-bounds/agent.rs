//! The agent's size: of its file, and of its resident set in a guest.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::Verdict;
use crate::workbench::Workbench;

/// Most bytes, of either.
const GOAL: u64 = 2_000_000;

pub(crate) fn measure(bench: &Workbench) -> Result<Verdict> {
    let file = std::fs::metadata(&bench.agent.path)
        .with_context(|| format!("cannot examine {}", bench.agent.path.display()))?
        .len();
    bench.run(&[
        "insula", "--quiet", "guest", "start", "bound", "--cold", "--memory", "128M",
    ])?;
    let report = bench.run(&["insula", "--json", "guest", "status", "bound"]);
    bench.run(&["insula", "--quiet", "guest", "stop", "bound"])?;
    let report: Value = serde_json::from_str(&report?).context("the guest's facts are not JSON")?;
    let resident = report["agent"]["agent_resident_bytes"]
        .as_u64()
        .with_context(|| format!("no resident set of the agent in {report}"))?;
    println!(
        "agent: file {file} bytes, resident in an idle guest {resident} bytes; goal: at most {GOAL} each"
    );
    Ok(Verdict {
        holds: file <= GOAL && resident <= GOAL,
        figures: json!({"unit": "bytes", "file": file, "resident": resident, "goal": GOAL}),
    })
}

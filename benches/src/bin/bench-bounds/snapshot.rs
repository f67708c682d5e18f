//! What a snapshot writes of a guest of 128 MiB that has touched 40 of them.

use anyhow::{Context, Result};
use serde_json::json;

use crate::Verdict;
use crate::restore::take_snapshot;
use crate::started::{GUEST, Started, stop};
use crate::workbench::Workbench;

/// At most so many times the pages that are not zero.
const GOAL: f64 = 1.01;
/// Bytes of a page.
const PAGE: u64 = 4096;
/// Fills 40 MiB of the guest's memory with what is not zero, and leaves it there.
const TOUCH: &str = "dd if=/dev/urandom of=/dev/shm/touched bs=1M count=40 2>/dev/null";

pub(crate) fn measure(bench: &Workbench) -> Result<Verdict> {
    Started::cold(bench, &[])?;
    let snapshot = Workbench::place("snapshot");
    let taken = bench
        .run(&[
            "insula", "--quiet", "vps", "create", "touch", "--guest", GUEST,
        ])
        .and_then(|_| {
            let exec = ["insula", "vps", "exec", "--guest", GUEST, "touch", "--"];
            bench.run(&[&exec[..], &["sh", "-c", TOUCH]].concat())
        })
        .and_then(|_| take_snapshot(bench, &snapshot));
    stop(bench, GUEST)?;
    taken?;

    let (pages, memory) = sizes(bench, &format!("{snapshot}/memory"))?;
    let (_, state) = sizes(bench, &format!("{snapshot}/state"))?;
    let whole = pages * PAGE;
    let ratio = (memory + state) as f64 / whole as f64;
    println!("snapshot of a guest of 128 MiB that has touched 40 MiB:");
    println!("  pages that are not zero  {pages:>10} of 4 KiB, {whole} bytes");
    println!("  written: memory          {memory:>10} bytes");
    println!("           state           {state:>10} bytes");
    println!("written / pages that are not zero: {ratio:.4}; goal: at most {GOAL}");
    Ok(Verdict {
        // Fewer pages than were touched: something else was measured.
        holds: ratio <= GOAL && whole >= 40 << 20,
        figures: json!({"unit": "bytes", "nonzero": whole, "memory": memory, "state": state,
            "ratio": ratio, "goal": GOAL}),
    })
}

/// Pages of a file that are not zero, and bytes that are allocated to it.
fn sizes(bench: &Workbench, path: &str) -> Result<(u64, u64)> {
    let output = bench.run(&[&Workbench::place("nonzero_pages"), path])?;
    let mut numbers = output.split_whitespace().map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(pages)), Some(Ok(bytes))) => Ok((pages, bytes)),
        _ => Err(anyhow::anyhow!("it printed {output:?}")),
    }
    .with_context(|| format!("cannot tell the size of {path}"))
}

//! Programs of ours against the least that the same work can cost.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::Verdict;
use crate::workbench::Workbench;

/// The machine process against the bare sequence of KVM calls.
pub(crate) fn vmm_cost(bench: &Workbench, runs: u32) -> Result<Verdict> {
    let bare = Workbench::place("bare_kvm");
    let runs = runs.to_string();
    let argv = [
        "bench-vmm-cost",
        "--runs",
        &runs,
        "--vmm",
        "/usr/local/bin/insula-vmm",
        "--bare",
        &bare,
    ];
    judged(bench, &argv)
}

/// A VPS on the bare host against bare system calls, `crun` and `runc`.
pub(crate) fn host_vps(bench: &Workbench, runs: u32) -> Result<Verdict> {
    // Where the mapped root of a user namespace may look, unlike in /root.
    const ROOT: &str = "/var/lib/bounds-root";
    let agent = Workbench::place("insula-agent");
    let bare = Workbench::place("bare_vps");
    // A root of the kind that all of them accept: a directory with a busybox.
    bench.run(&[
        "sh",
        "-c",
        "set -e; rm -rf \"$0\"; mkdir -p /mnt /var/lib \"$0/bin\" \"$0/proc\" \"$0/sys\" \"$0/dev\" \"$0/etc\" \
         \"$0/tmp\" \"$0/run\" \"$0/root\"; cp $(command -v busybox) \"$0/bin/busybox\"; \
         for name in sh true hostname; do ln -s busybox \"$0/bin/$name\"; done",
        ROOT,
    ])?;
    let runs = runs.to_string();
    let argv = [
        "bench-host-vps",
        "--root",
        ROOT,
        "--agent",
        &agent,
        "--bare",
        &bare,
        "--runs",
        &runs,
    ];
    judged(bench, &argv)
}

/// Runs a bench that prints its own table and says by its exit code whether
/// its goal is met.
fn judged(bench: &Workbench, argv: &[&str]) -> Result<Verdict> {
    let (code, output) = bench.run_any(argv)?;
    print!("{output}");
    let holds = match code {
        0 => true,
        1 => false,
        _ => bail!("`{}` could not measure (exit code {code})", argv.join(" ")),
    };
    let lines: Vec<Value> = output.lines().map(Value::from).collect();
    Ok(Verdict {
        holds,
        figures: json!({"holds": holds, "printed": lines}),
    })
}

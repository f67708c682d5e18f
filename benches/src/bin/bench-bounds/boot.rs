//! Boot: from the first guest instruction to the agent's hello, against what
//! the same VMM needs to reach `/init` with an untrimmed kernel.

use anyhow::{Context, Result};
use compare::stats::median;
use serde_json::{Value, json};

use crate::Verdict;
use crate::workbench::Workbench;

/// At most this part of the untrimmed kernel's time.
const GOAL: f64 = 0.5;

/// What of the untrimmed kernel only waits for hardware that no VMM of this kind has:
/// a keyboard controller, and, for a second each time, a battery-backed clock that
/// stops being updated (by the driver, and by the suspend trace that reads it at
/// boot). It is not to lose by that.
const ONLY_WAITS: &str = "initcall_blacklist=i8042_init,cmos_init,early_resume_init";

/// What the untrimmed kernel is, for the reader.
const YARDSTICK: &str = "untrimmed: x86_64_defconfig with kvm_guest.config and the features of \
     insula's kernel built in; not started are its waits for a keyboard controller and a \
     battery-backed clock, which this machine does not have";

/// Boots of the untrimmed kernel: each takes a minute, and they agree.
const UNTRIMMED_RUNS: u32 = 2;

/// One boot, in million instructions since the first guest instruction.
struct Boot {
    init: f64,
    ready: f64,
    /// From the start of the machine process to the first guest instruction.
    before: f64,
}

pub(crate) fn measure(bench: &Workbench, runs: u32) -> Result<Verdict> {
    let yardstick = Workbench::place("yardstick");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 0..runs {
        ours.push(boot(bench, &[])?);
        if run >= UNTRIMMED_RUNS {
            continue;
        }
        theirs.push(boot(
            bench,
            &["--kernel", &yardstick, "--cmdline", ONLY_WAITS],
        )?);
    }
    println!("boot of 1 vCPU, 128 MiB: million instructions (median; least to most)");
    println!("{YARDSTICK}");
    println!(
        "{:<12} {:>28} {:>28} {:>28}",
        "kernel", "VMM, to the first instr.", "to /init", "to agent ready"
    );
    for (name, boots) in [("insula", &ours), ("untrimmed", &theirs)] {
        println!(
            "{name:<12} {:>28} {:>28} {:>28}",
            spread(boots, |b| b.before),
            spread(boots, |b| b.init),
            spread(boots, |b| b.ready),
        );
    }
    let ready = median_of(&ours, |b| b.ready);
    let init = median_of(&theirs, |b| b.init);
    let ratio = ready / init;
    println!("ready / untrimmed init: {ratio:.3}; goal: at most {GOAL}");
    Ok(Verdict {
        holds: ratio <= GOAL,
        figures: json!({"unit": "million instructions", "ratio": ratio, "goal": GOAL,
            "insula": list(&ours), "untrimmed": list(&theirs)}),
    })
}

fn boot(bench: &Workbench, more: &[&str]) -> Result<Boot> {
    const START: [&str; 9] = [
        "insula", "--json", "guest", "start", "bound", "--vcpus", "1", "--memory", "128M",
    ];
    let report = bench.run(&[&START, more].concat())?;
    bench.run(&["insula", "--quiet", "guest", "stop", "bound"])?;
    let report: Value = serde_json::from_str(&report)
        .with_context(|| format!("the report of a started guest is not JSON: {report:?}"))?;
    let at = |name: &str| {
        report["spans"][name]
            .as_f64()
            .map(|ns| ns / 1e6)
            .with_context(|| format!("no span {name} in {report}"))
    };
    let first = at("first_instruction")?;
    Ok(Boot {
        init: at("init")? - first,
        ready: at("agent_ready")? - first,
        before: first - at("process_start")?,
    })
}

fn median_of(boots: &[Boot], of: fn(&Boot) -> f64) -> f64 {
    median(&boots.iter().map(of).collect::<Vec<_>>()).unwrap_or(f64::NAN)
}

fn spread(boots: &[Boot], of: fn(&Boot) -> f64) -> String {
    let least = boots.iter().map(of).fold(f64::INFINITY, f64::min);
    let most = boots.iter().map(of).fold(0.0, f64::max);
    format!("{:.2} ({least:.2} to {most:.2})", median_of(boots, of))
}

fn list(boots: &[Boot]) -> Vec<Value> {
    boots
        .iter()
        .map(|b| json!({"before": b.before, "init": b.init, "ready": b.ready}))
        .collect()
}

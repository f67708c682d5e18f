//! Boot: from the first guest instruction to the agent's hello, against what
//! the same VMM needs to reach `/init` with an untrimmed kernel.

use anyhow::Result;
use serde_json::{Value, json};

use crate::Verdict;
use crate::started::{GUEST, Started, middle, spread, stop};
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
            spread(&each(boots, |b| b.before)),
            spread(&each(boots, |b| b.init)),
            spread(&each(boots, |b| b.ready)),
        );
    }
    let ready = middle(&each(&ours, |b| b.ready));
    let init = middle(&each(&theirs, |b| b.init));
    let ratio = ready / init;
    println!("ready / untrimmed init: {ratio:.3}; goal: at most {GOAL}");
    Ok(Verdict {
        holds: ratio <= GOAL,
        figures: json!({"unit": "million instructions", "ratio": ratio, "goal": GOAL,
            "insula": list(&ours), "untrimmed": list(&theirs)}),
    })
}

fn boot(bench: &Workbench, more: &[&str]) -> Result<Boot> {
    let started = Started::cold(bench, more)?;
    stop(bench, GUEST)?;
    Ok(Boot {
        init: started.between("first_instruction", "init")?,
        ready: started.between("first_instruction", "agent_ready")?,
        before: started.between("process_start", "first_instruction")?,
    })
}

fn each(boots: &[Boot], of: fn(&Boot) -> f64) -> Vec<f64> {
    boots.iter().map(of).collect()
}

fn list(boots: &[Boot]) -> Vec<Value> {
    boots
        .iter()
        .map(|b| json!({"before": b.before, "init": b.init, "ready": b.ready}))
        .collect()
}

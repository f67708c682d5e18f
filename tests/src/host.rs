//! The host on which the guests run: this machine, or the lab.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::command::{Finished, Invocation};
use crate::program::insula;

/// Whether guests run in the lab, as `insula doctor` says.
///
/// # Panics
/// If they can run nowhere: the tests need a KVM, and say so.
pub fn in_lab() -> bool {
    let report = doctor();
    match report["runs_on"].as_str() {
        Some("hardware") => false,
        Some("lab") => true,
        other => {
            panic!("guests can run neither on hardware nor in the lab ({other:?}): {report}")
        }
    }
}

/// What kind of KVM this machine has itself, as `insula doctor` says:
/// `hardware`, `pvm`, `unusable` or `missing`.
///
/// # Panics
/// If it does not say.
pub fn kvm_kind() -> &'static str {
    let report = doctor();
    report["kvm"]
        .as_str()
        .unwrap_or_else(|| panic!("no kind of KVM in {report}"))
}

fn doctor() -> &'static Value {
    static REPORT: OnceLock<Value> = OnceLock::new();
    REPORT.get_or_init(|| {
        let report = Invocation::new(insula()).args(["doctor", "--json"]).run();
        json(&report.stdout)
    })
}

/// A run of `program` on the host of the guests, as root.
pub fn host(program: &str) -> Invocation {
    if in_lab() {
        Invocation::new(insula()).args(["lab", "run", "--", program])
    } else {
        Invocation::new(program)
    }
}

/// Parses what a command printed with `--json`.
///
/// # Panics
/// If it is not JSON.
#[track_caller]
pub fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON ({error}): {text:?}"))
}

/// A guest's name that no other test uses; what is left of the guest is
/// stopped when the test ends, however it ends.
#[derive(Debug)]
pub struct GuestName {
    name: String,
    /// Where it runs, if not where guests run by default.
    on: Option<&'static str>,
}

impl GuestName {
    /// A fresh name that begins with `stem`.
    pub fn new(stem: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            name: format!("{stem}-{}-{number}", std::process::id()),
            on: None,
        }
    }

    /// A fresh name of a guest that runs there.
    pub fn on(place: &'static str, stem: &str) -> Self {
        let mut name = Self::new(stem);
        name.on = Some(place);
        name
    }

    /// Starts the guest with these further arguments.
    #[track_caller]
    pub fn start(&self, args: &[&str]) -> Finished {
        Invocation::new(insula())
            .args(["guest", "start", self.as_str()])
            .args(args)
            .run()
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// `insula vps VERB --guest NAME ARGS…`
    pub fn vps(&self, verb: &str) -> Invocation {
        Invocation::new(insula()).args(["vps", verb, "--guest", self.as_str()])
    }

    /// The state of one VPS, as `insula vps list --json` has it.
    ///
    /// # Panics
    /// If there is no such VPS.
    #[track_caller]
    pub fn vps_state(&self, name: &str) -> Value {
        let list = json(&self.vps("list").args(["--json"]).run().ok());
        let found = list
            .as_array()
            .and_then(|all| all.iter().find(|vps| vps["name"] == name));
        found
            .unwrap_or_else(|| panic!("no VPS {name} in {list}"))
            .clone()
    }
}

impl Drop for GuestName {
    fn drop(&mut self) {
        let place = self.on.map(|place| ["--on", place]);
        let _ = Invocation::new(insula())
            .args(place.into_iter().flatten())
            .args(["guest", "stop", "--kill", self.as_str()])
            .run();
    }
}

/// What insula has on the host at a moment: machine processes, agents,
/// mounts, cgroups and files of guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint(BTreeSet<String>);

impl Footprint {
    /// What is here that was not in `before`.
    pub fn beyond<'a>(&'a self, before: &'a Self) -> Vec<&'a str> {
        self.0.difference(&before.0).map(String::as_str).collect()
    }
}

/// What insula has on the host now, of things whose name contains `mark`.
///
/// # Panics
/// If the host cannot be looked at.
#[track_caller]
pub fn footprint(mark: &str) -> Footprint {
    let script = r#"
for pid in /proc/[0-9]*; do
  line=$(tr '\0' ' ' < $pid/cmdline 2>/dev/null) || continue
  case "$line" in insula-vmm*|*/insula-vmm*|insula-agent*run*|*/insula-agent*run*) echo "process $line";; esac
done
sed 's/^/mount /' /proc/self/mounts | cut -d' ' -f1-4
find /sys/fs/cgroup -type d | sed 's/^/cgroup /'
ls -d /run/insula/* 2>/dev/null | sed 's/^/file /'
losetup -a 2>/dev/null | sed 's/^/loop /'
"#;
    let listing = host("sh").args(["-c", script]).run().ok();
    Footprint(
        listing
            .lines()
            .filter(|line| line.contains(mark))
            .map(str::to_owned)
            .collect(),
    )
}

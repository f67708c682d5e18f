//! `insula run`: launch, run, exit with its code, clean up.

use insula_tests::{Invocation, footprint, insula};

const MODELS: [&str; 4] = ["process", "host-vps", "guest-vps", "microvm"];

#[test]
fn every_model_carries_output_and_exit_code_and_cleans_up() {
    let before = footprint("");
    let mut names = Vec::new();
    for model in MODELS {
        let finished = Invocation::new(insula())
            .args([
                "run",
                "--model",
                model,
                "--",
                "sh",
                "-c",
                "hostname; cat; exit 7",
            ])
            .stdin("from outside")
            .run();
        assert_eq!(finished.code(), 7, "{model}: {finished}");
        assert!(
            finished.stdout.ends_with("\nfrom outside"),
            "{model}: {finished}"
        );
        let hostname = finished.stdout.lines().next().unwrap_or_default();
        names.extend(Some(hostname.to_owned()).filter(|name| name.starts_with("run-")));
    }
    assert!(names.len() >= 2, "hosts of their own: {names:?}");
    // Guests of other tests, also of `run`, come and go meanwhile.
    let after = footprint("run-");
    let mut left = after.beyond(&before);
    left.retain(|line| names.iter().any(|name| line.contains(name)));
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn the_default_model_is_a_vps_in_a_guest() {
    let finished = Invocation::new(insula())
        .args(["run", "--", "sh", "-c", "hostname; exit 7"])
        .run();
    assert_eq!(finished.code(), 7, "{finished}");
    assert_eq!(finished.stdout.lines().count(), 1, "{finished}");
}

#[test]
fn limits_hold_in_every_partition() {
    for model in ["host-vps", "guest-vps"] {
        let finished = Invocation::new(insula())
            .args(["run", "--model", model, "--memory", "24M", "--", "sh", "-c"])
            .args(["dd if=/dev/zero of=/dev/null bs=40000000 count=1"])
            .run();
        assert_ne!(
            finished.code(),
            0,
            "{model}: 40 MB fitted into 24 MiB: {finished}"
        );
    }
}

#[test]
fn unknown_models_templates_and_commands_are_named() {
    let run = |args: &[&str]| Invocation::new(insula()).arg_run(args);
    run(&["--model", "jail", "--", "true"]).fails(2, &["jail", "guest-vps"]);
    run(&["--template", "nix", "--", "true"]).fails(1, &["nix", "template"]);
    run(&["--", "no-such-program"]).fails(127, &["no-such-program"]);
    run(&[]).fails(2, &["<CMD>"]);
}

trait ArgRun {
    fn arg_run(self, args: &[&str]) -> insula_tests::Finished;
}

impl ArgRun for Invocation {
    fn arg_run(self, args: &[&str]) -> insula_tests::Finished {
        self.args(["run"]).args(args).run()
    }
}

#[test]
fn two_machines_from_one_warm_start_have_booted_apart() {
    let mut seen = Vec::new();
    for _ in 0..3 {
        let boot_id = ["cat", "/proc/sys/kernel/random/boot_id"];
        let run = ["run", "--model", "microvm", "--"];
        seen.push(Invocation::new(insula()).args(run).args(boot_id).run().ok());
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3, "they share an identity: {seen:?}");
}

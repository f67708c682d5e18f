//! The lab carries what a command needs; the doctor says where guests run.

use std::thread;

use insula_tests::{Invocation, in_lab, insula, json};

#[test]
fn the_lab_carries_streams_and_exit_codes() {
    let run = |args: &[&str]| {
        Invocation::new(insula())
            .args(["lab", "run", "--"])
            .args(args)
    };
    let finished = run(&["sh", "-c", "cat; echo err >&2; exit 9"])
        .stdin("through")
        .run();
    assert_eq!(
        (finished.code(), finished.stdout.as_str()),
        (9, "through"),
        "{finished}"
    );
    assert!(finished.stderr.contains("err"), "{finished}");
    assert!(run(&["ls", "/dev/kvm"]).run().ok().contains("/dev/kvm"));
}

#[test]
fn several_use_the_lab_at_once() {
    thread::scope(|scope| {
        let runs: Vec<_> = (1..=6)
            .map(|code: i32| {
                scope.spawn(move || {
                    let script = format!("sleep 0.2; exit {code}");
                    Invocation::new(insula())
                        .args(["lab", "run", "--", "sh", "-c", &script])
                        .run()
                        .code()
                })
            })
            .collect();
        for (code, run) in (1..).zip(runs) {
            assert_eq!(run.join().unwrap(), code);
        }
    });
}

#[test]
fn the_doctor_says_where_guests_run() {
    let report = Invocation::new(insula()).args(["doctor", "--json"]).run();
    assert_eq!(report.code(), 0, "{report}");
    let report = json(&report.stdout);
    let place = report["runs_on"].as_str().unwrap();
    assert_eq!(place == "lab", in_lab());

    // In the lab the same doctor sees ordinary hardware virtualization.
    let inside = Invocation::new(insula())
        .args(["lab", "run", "--", "insula", "doctor", "--json"])
        .run();
    assert_eq!(json(&inside.ok())["runs_on"], "hardware");
}

#[test]
fn a_host_without_hardware_virtualization_names_the_lab() {
    if !in_lab() {
        // There is hardware here: nothing to refuse.
        return;
    }
    Invocation::new(insula())
        .args(["--on", "hardware", "guest", "start", "direct"])
        .run()
        .fails(1, &["lab"]);
}

#[test]
fn shells_get_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let script = Invocation::new(insula())
            .args(["completions", shell])
            .run()
            .ok();
        assert!(script.contains("insula"), "{shell}: {script}");
    }
}

//! The lab carries what a command needs; the doctor says where guests run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
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

/// `insula lab start` of a lab of its own, with `script` in QEMU's place; none
/// of its processes may be left, nor its sockets.
fn start_with(script: &str, complaints: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("qemu-system-x86_64");
    // No snapshot is of this version: it has to boot.
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo 'version insula-test' && exit\n{script}\n"
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    Invocation::new(insula())
        .args(["lab", "start"])
        .env("PATH", format!("{}:{path}", dir.path().display()))
        .env("INSULA_LAB_DIR", dir.path().join("lab"))
        .env("INSULA_LAB_TIMEOUT", "3")
        .run()
        .fails(1, complaints);

    for name in ["qmp.sock", "qemu.pid", "instance.json"] {
        assert!(
            !dir.path().join("lab/default").join(name).exists(),
            "{name}"
        );
    }
    let mark = dir.path().to_str().unwrap();
    let left = Invocation::new("pgrep").args(["-fa", mark]).run();
    assert_eq!(left.stdout, "", "left running");
}

#[test]
fn a_qemu_that_refuses_is_quoted() {
    start_with(
        "echo 'qemu: no such machine' >&2; exit 1",
        &["QEMU ended", "no such machine"],
    );
}

#[test]
fn a_qemu_that_hangs_is_ended() {
    start_with("exec sleep 600", &["did not come up within 3 s", "monitor"]);
}

#[test]
fn a_lab_that_never_comes_up_is_given_up_with_its_last_words() {
    // The real one, with processors that never begin.
    start_with(
        "echo 'as far as it came' >&2; exec /usr/bin/qemu-system-x86_64 \"$@\" -S",
        &["did not come up within 3 s", "as far as it came"],
    );
}

#[test]
fn a_shell_in_the_lab_has_a_terminal() {
    let command = format!("{} lab shell", insula().display());
    let shell = Invocation::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .stdin("tty; exit 5\n")
        .run();
    assert_eq!(shell.code(), 5, "{shell}");
    assert!(shell.stdout.contains("/dev/pts/"), "{shell}");
}

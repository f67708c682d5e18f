//! The lab carries what a command needs.

use insula_tests::{Invocation, insula};

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

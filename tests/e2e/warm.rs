//! Warm starts: the second guest of a kind is restored, unless it must not be.

use insula_tests::{Finished, GuestName, Invocation, host, insula, json};
use serde_json::Value;

/// A kind of guest that no earlier test started.
struct Kind(String);

impl Kind {
    fn new(stem: &str) -> Self {
        // Modules that are not there may have parameters.
        Self(format!("{stem}.test={}", std::process::id()))
    }

    fn start(&self, guest: &GuestName, more: &[&str]) -> Finished {
        let same = ["--memory", "128M", "--disk", "64M", "--json", "--verbose"];
        guest.start(&[&same, ["--cmdline", self.0.as_str()].as_slice(), more].concat())
    }
}

/// How the guest came to run.
fn how(started: Finished) -> String {
    let report: Value = json(&started.ok());
    report["start"].as_str().unwrap().to_owned()
}

fn shell(guest: &GuestName, script: &str) -> String {
    guest
        .vps("exec")
        .args(["web", "--", "sh", "-c", script])
        .run()
        .ok()
}

#[test]
fn the_second_guest_of_a_kind_is_restored_and_a_machine_of_its_own() {
    let kind = Kind::new("second");
    let guests = ["first", "second", "third"].map(GuestName::new);
    let [first, second, third] = &guests;
    assert_eq!(how(kind.start(first, &[])), "cold");
    assert_eq!(how(kind.start(second, &[])), "restored");
    assert_eq!(how(kind.start(third, &["--cold"])), "cold");
    let mut seen = Vec::new();
    for guest in [first, second] {
        guest.vps("create").args(["web"]).run().ok();
        seen.push(shell(guest, "cat /proc/sys/kernel/random/uuid"));
        seen.push(shell(guest, "head -c 16 /dev/urandom | od -An -tx1"));
        shell(guest, "echo mine > /root/file; sync; cat /root/file");
    }
    let all = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), all, "they share something: {seen:?}");

    // Another kind, and what the snapshot does not answer for, boots.
    let [other, big, profiled] = ["other", "big", "profiled"].map(GuestName::new);
    assert_eq!(how(Kind::new("other").start(&other, &[])), "cold");
    assert_eq!(how(kind.start(&big, &["--vcpus", "2"])), "cold");
    assert_eq!(how(kind.start(&profiled, &["--profile"])), "cold");
    // What the first one wrote is in no later one.
    let fourth = GuestName::new("fourth");
    assert_eq!(how(kind.start(&fourth, &[])), "restored");
    fourth.vps("create").args(["web"]).run().ok();
    assert_eq!(
        shell(&fourth, "ls /root/file 2>/dev/null || echo none"),
        "none"
    );
}

#[test]
fn a_damaged_snapshot_is_removed_and_the_guest_boots() {
    let kind = Kind::new("damaged");
    let guests = ["sound", "booted", "again"].map(GuestName::new);
    let [sound, booted, again] = &guests;
    assert_eq!(how(kind.start(&GuestName::new("original"), &[])), "cold");
    let restored = kind.start(sound, &[]);
    let mut words = restored.stderr.split_whitespace();
    let snapshot = words
        .find(|word| word.ends_with("/snapshot"))
        .unwrap_or_else(|| panic!("no snapshot is named: {restored}"))
        .to_owned();
    assert_eq!(how(restored), "restored");
    let spoil =
        format!("printf X | dd of={snapshot}/memory bs=1 seek=2000000 conv=notrunc 2>/dev/null");
    host("sh").args(["-c", &spoil]).run().ok();
    let started = kind.start(booted, &[]);
    assert!(started.stderr.contains("altered"), "{started}");
    assert_eq!(how(started), "cold");
    // Which left a good one.
    assert_eq!(how(kind.start(again, &[])), "restored");
}

#[test]
fn commands_in_guests_of_their_own_start_warm_unless_told() {
    let starts = tempfile::tempdir().unwrap();
    let log = starts.path().join("starts");
    for model in ["guest-vps", "microvm"] {
        let hostname = |cold: &str| {
            Invocation::new(insula())
                .env("INSULA_STARTS_LOG", &log)
                .env("INSULA_COLD", cold)
                .args(["run", "--model", model, "--", "hostname"])
                .run()
                .ok()
        };
        // The first one may be warm by an earlier test.
        let names = ["0", "", "1"].map(hostname);
        assert!(
            names.iter().all(|name| name.starts_with("run-")),
            "{model}: {names:?}"
        );
        assert!(names[0] != names[1] && names[1] != names[2], "{names:?}");
        let text = std::fs::read_to_string(&log).unwrap();
        std::fs::remove_file(&log).unwrap();
        let how: Vec<String> = text
            .lines()
            .map(|line| json(line)["how"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(how[1..], ["restored", "cold"], "{model}: {text}");
    }
}

//! A guest from start to stop, and kernels that are none.

use insula_tests::{GuestName, Invocation, footprint, insula, json};

#[test]
fn a_guest_boots_reports_its_spans_and_leaves_nothing() {
    let guest = GuestName::new("boot");
    let before = footprint(guest.as_str());
    let report = json(&guest.start(&["--cold", "--json"]).ok());

    let spans = &report["spans"];
    let at = |name: &str| {
        spans[name]
            .as_u64()
            .unwrap_or_else(|| panic!("no span {name} in {report}"))
    };
    let order = [
        "process_start",
        "kvm_ready",
        "memory_ready",
        "kernel_loaded",
        "first_instruction",
        "init",
        "agent_ready",
    ];
    for pair in order.windows(2) {
        assert!(
            at(pair[0]) <= at(pair[1]),
            "{} comes after {}: {spans}",
            pair[0],
            pair[1]
        );
    }

    let list = json(
        &Invocation::new(insula())
            .args(["guest", "list", "--json"])
            .run()
            .ok(),
    );
    let entry = list
        .as_array()
        .and_then(|guests| guests.iter().find(|entry| entry["name"] == guest.as_str()))
        .unwrap_or_else(|| panic!("the guest is not in {list}"));
    assert_eq!(entry["state"], "running");

    let stopped = Invocation::new(insula())
        .args(["guest", "stop", guest.as_str(), "--json"])
        .run();
    assert_eq!(json(&stopped.ok())["exit"], "clean");
    let after = footprint(guest.as_str());
    assert!(
        after.beyond(&before).is_empty(),
        "left behind: {:?}",
        after.beyond(&before)
    );
}

#[test]
fn every_vcpu_comes_up() {
    for vcpus in ["1", "2", "16"] {
        let nproc = Invocation::new(insula())
            .args([
                "run", "--model", "microvm", "--vcpus", vcpus, "--memory", "256M",
            ])
            .args(["--", "nproc"])
            .run();
        assert_eq!(nproc.ok(), vcpus);
    }
}

#[test]
fn a_guest_that_panics_is_told_apart_from_one_that_powers_off() {
    let guest = GuestName::new("panic");
    guest
        .start(&["--cmdline", "rdinit=/no/such/init"])
        .fails(20, &["panic", "Unable to mount root fs", guest.as_str()]);
}

#[test]
fn a_guest_that_never_becomes_ready_is_given_up_with_its_last_words() {
    let guest = GuestName::new("never");
    let before = footprint(guest.as_str());
    // The kernel waits for a console that never comes, long before init.
    guest
        .start(&[
            "--cmdline",
            "rdinit=/no/such/init panic=0",
            "--ready-timeout",
            "40s",
        ])
        .fails(24, &["not ready", "Unable to mount root fs"]);
    assert_eq!(footprint(guest.as_str()), before);
}

#[test]
fn what_is_not_a_kernel_is_refused_by_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&str, Vec<u8>, &str); 4] = [
        ("empty", Vec::new(), "empty"),
        (
            "text",
            b"this is not a kernel, it is a letter\n".repeat(100),
            "text file",
        ),
        (
            "gzip",
            [&[0x1f, 0x8b, 8, 0][..], &[0; 4096]].concat(),
            "gzip",
        ),
        (
            "truncated",
            [&b"\x7fELF\x02\x01\x01"[..], &[0; 20]].concat(),
            "truncated",
        ),
    ];
    for (name, bytes, word) in cases {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let guest = GuestName::new("kernel");
        let before = footprint(guest.as_str());
        guest
            .start(&["--kernel", path.to_str().unwrap()])
            .fails(23, &[name, word]);
        assert_eq!(footprint(guest.as_str()), before);
    }
}

#[test]
fn sizes_beyond_the_limits_are_refused() {
    let guest = GuestName::new("sizes");
    guest.start(&["--vcpus", "17"]).fails(2, &["17", "16"]);
    guest.start(&["--vcpus", "0"]).fails(2, &["0"]);
    guest.start(&["--memory", "4M"]).fails(2, &["4M", "memory"]);
    guest.start(&["--memory", "lots"]).fails(2, &["lots"]);
}

#[test]
fn a_name_in_use_is_refused_and_an_unknown_one_is_not_found() {
    let guest = GuestName::new("name");
    guest.start(&[]).ok();
    guest.start(&[]).fails(1, &[guest.as_str(), "already"]);
    Invocation::new(insula())
        .args(["guest", "stop", "nobody"])
        .run()
        .fails(1, &["nobody", "insula guest list"]);
}

#[test]
fn a_profile_says_where_a_boot_and_a_moment_go() {
    let guest = GuestName::new("profile");
    guest.start(&["--profile"]).ok();
    let profile = |args: &[&str]| {
        Invocation::new(insula())
            .args(["guest", "profile", guest.as_str()])
            .args(args)
            .run()
    };
    for (span, args) in [
        ("boot", ["--boot", "--json"].as_slice()),
        ("now", &["--seconds", "1", "--json"]),
    ] {
        let report = json(&profile(args).ok());
        assert_eq!(report["span"], span, "{report}");
        assert_eq!(report["vcpus"], 1, "{report}");
        let samples = report["samples"].as_u64().unwrap();
        assert!(samples > 0, "{report}");
        // Every sample is some function's, and the functions are the kernel's.
        let functions = report["functions"].as_array().unwrap();
        let of_functions: u64 = functions
            .iter()
            .map(|entry| entry["samples"].as_u64().unwrap())
            .sum();
        assert_eq!(of_functions, samples, "{report}");
    }
    let table = profile(&["--boot", "--top", "3"]).ok();
    assert!(
        table.contains("SHARE") && table.contains("functions more"),
        "{table}"
    );

    // A boot that nobody sampled is not made up.
    let plain = GuestName::new("unprofiled");
    plain.start(&[]).ok();
    Invocation::new(insula())
        .args(["guest", "profile", plain.as_str(), "--boot"])
        .run()
        .fails(1, &[plain.as_str(), "--profile"]);
}

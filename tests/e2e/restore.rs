//! Restoring guests in other ways than the plain one, and snapshots whose
//! maker is killed.

use std::thread;
use std::time::Duration;

use insula_tests::{Finished, GuestName, host, json};
use serde_json::Value;
use vmm::snapshot::{MachineState, file};

use crate::snapshot::{AWAIT_PARTIAL, Directory, guest, in_web, listed, restore, snapshot, start};

/// A copy of a snapshot whose state is another one.
fn altered(of: &Directory, alter: impl FnOnce(&mut MachineState)) -> Directory {
    let copy = Directory(format!("{}.x", of.0));
    of.shell("rm -rf $D.x; cp -a --sparse=always $D $D.x").ok();
    let dump = copy.shell("od -An -v -tx1 $D/state").ok();
    let bytes: Vec<u8> = dump
        .split_ascii_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    let mut state = file::decode(&bytes, copy.0.as_ref()).unwrap();
    alter(&mut state);
    host("sh")
        .args(["-c", &format!("cat > {}/state", copy.0)])
        .stdin(file::encode(&state))
        .run()
        .ok();
    copy
}

/// Has `alter` at the registers of a leaf of the snapshot's CPUID.
fn with_leaf(of: &Directory, leaf: u32, alter: impl Fn(&mut u32, &mut u32)) -> Directory {
    altered(of, |state| {
        let mut leaves = state.cpuid.0.iter_mut();
        let found = leaves.find(|entry| (entry.function, entry.index) == (leaf, 0));
        let found = found.unwrap();
        alter(&mut found.eax, &mut found.ebx);
    })
}

#[test]
fn another_processor_is_refused_by_name_and_forced_only_where_it_can_be() {
    let original = start("force");
    let good = Directory::new("force");
    snapshot(&original, &good, &["--stop"]).ok();
    let clone = GuestName::new("force-copy");
    let force = |directory: &Directory| restore(directory, &clone, &["--force"]);

    // PCOMMIT was announced and never built: no host has it.
    let lacking = with_leaf(&good, 7, |_, ebx| *ebx |= 1 << 22);
    let none = |refused: Finished| refused.fails(25, &["lacks", "pcommit"]);
    none(restore(&lacking, &clone, &[]));
    none(force(&lacking));
    // A guest may use any address that it was told of.
    let narrower = with_leaf(&good, 0x8000_0008, |eax, _| *eax |= 0xff);
    force(&narrower).fails(25, &["255-bit physical addresses"]);
    // Another maker: nothing is as the guest knows it.
    let foreign = with_leaf(&good, 0, |_, ebx| *ebx = u32::from_le_bytes(*b"Inso"));
    force(&foreign).fails(25, &["vendor"]);
    assert!(!guest("list").run().ok().contains(clone.as_str()));

    // The same features in another model.
    let model = with_leaf(&good, 1, |eax, _| *eax ^= 0x10);
    restore(&model, &clone, &[]).fails(25, &["model", "force"]);
    force(&model).ok();
    assert_eq!(in_web(&clone, "hostname"), "web");
}

#[test]
fn memory_is_restored_into_huge_pages_if_asked_for() {
    let original = start("huge");
    let fill = "head -c 20000000 /dev/zero | tr '\\0' x > /tmp/x; sha256sum /tmp/x";
    let sum = in_web(&original, fill);
    let directory = Directory::new("huge");
    snapshot(&original, &directory, &["--stop"]).ok();
    let (plain, huge) = (GuestName::new("plain-copy"), GuestName::new("huge-copy"));
    restore(&directory, &plain, &[]).ok();
    restore(&directory, &huge, &["--huge-pages"]).ok();
    for clone in [&plain, &huge] {
        assert_eq!(in_web(clone, "sha256sum /tmp/x"), sum);
    }
    assert_eq!(listed(&plain)["huge_pages"], false);
    assert_eq!(listed(&huge)["huge_pages"], true);
    let table = guest("list").run().ok();
    let line = |name: &GuestName| {
        let mut lines = table.lines();
        lines.find(|line| line.contains(name.as_str())).unwrap()
    };
    assert!(line(&huge).contains("huge pages"), "{table}");
    assert!(!line(&plain).contains("huge pages"), "{table}");
    let status = guest("status").args([huge.as_str()]).run().ok();
    assert!(status.contains("huge ones"), "{status}");
}

#[test]
fn a_guest_with_two_processors_goes_on_with_both() {
    let original = GuestName::new("smp");
    original
        .start(&["--memory", "128M", "--disk", "64M", "--vcpus", "2"])
        .ok();
    original.vps("create").args(["web"]).run().ok();
    assert_eq!(in_web(&original, "nproc"), "2");
    in_web(
        &original,
        "for cpu in 0 1; do taskset -c $cpu sh -c 'n=0; while true; do n=$((n+1)); \
         echo $n > /tmp/count-'$cpu'; usleep 100000; done' > /dev/null 2>&1 < /dev/null & done",
    );
    let directory = Directory::new("smp");
    snapshot(&original, &directory, &[]).ok();
    let clone = GuestName::new("smp-copy");
    restore(&directory, &clone, &[]).ok();
    for guest in [&original, &clone] {
        assert_eq!(in_web(guest, "nproc"), "2");
        for cpu in ["0", "1"] {
            // The programs that were pinned go on, and new ones can be.
            let counted = format!(
                "taskset -c {cpu} sh -c 'one=$(cat /tmp/count-{cpu}); n=0; \
                 until [ \"$(cat /tmp/count-{cpu})\" -gt $((one+3)) ] || [ $n = 600 ]; do \
                 n=$((n+1)); sleep 0.1; done; [ $n != 600 ] && cut -d\" \" -f39 /proc/self/stat'"
            );
            assert_eq!(in_web(guest, &counted), cpu);
        }
    }
}

#[test]
fn a_restored_guest_is_saved_as_a_change_of_its_snapshot() {
    let original = start("change");
    let [base, change, huge] = ["origin", "onto", "none"].map(Directory::new);
    let filled = "head -c 8000000 /dev/zero | tr '\\0' x > /tmp/x; echo one > /tmp/one";
    in_web(&original, filled);
    let full = json(&snapshot(&original, &base, &["--stop", "--json"]).ok());
    let clone = GuestName::new("change-copy");
    restore(&base, &clone, &[]).ok();
    in_web(
        &clone,
        "echo two > /tmp/two; echo more >> /root/file; rm /tmp/one",
    );
    let incremental = ["--incremental", "--json"];
    let first = json(&snapshot(&clone, &change, &incremental).ok());
    // From then on its own changes are tracked.
    in_web(&clone, "echo three > /tmp/three");
    let next = Directory::new("onto-that");
    let second = json(&snapshot(&clone, &next, &["--incremental", "--stop", "--json"]).ok());
    let bytes = |taken: &Value| taken["memory_bytes"].as_u64().unwrap();
    assert!(bytes(&first) * 2 < bytes(&full), "{full} {first}");
    assert!(bytes(&second) * 2 < bytes(&full), "{full} {second}");

    let last = GuestName::new("change-last");
    restore(&next, &last, &[]).ok();
    let all = "cd /tmp; tr -d x < x | wc -c; wc -c < x; ls one two three; cat two three /root/file";
    assert_eq!(
        in_web(&last, &format!("({all}) 2>/dev/null")),
        "0\n8000000\nthree\ntwo\ntwo\nthree\nmore"
    );

    // Its pages in huge pages are none of the snapshot's.
    let other = GuestName::new("change-huge");
    restore(&base, &other, &["--huge-pages"]).ok();
    snapshot(&other, &huge, &["--incremental"]).fails(1, &["full one first"]);
    // What takes the place of a snapshot is no base for changes of that.
    let late = GuestName::new("change-late");
    restore(&base, &late, &[]).ok();
    snapshot(&last, &base, &[]).ok();
    snapshot(&late, &huge, &["--incremental"]).fails(1, &["restored from", "full one first"]);
    restore(&change, &GuestName::new("change-lost"), &[]).fails(25, &[]);
}

#[test]
fn a_killed_command_leaves_the_old_snapshot_and_the_guest() {
    let original = start("killed");
    let directory = Directory::new("killed");
    snapshot(&original, &directory, &[]).ok();
    let pid = listed(&original)["pid"].to_string();
    let kill = format!(
        // The machine process stands still while the command is killed, so
        // that it is in the middle for certain.
        "exec 2>/dev/null; {AWAIT_PARTIAL}; kill -STOP {pid}; ls -d $D.partial-* >/dev/null 2>&1; middle=$?; \
         for process in /proc/[0-9]*; do \
           case \"$(cat $process/comm) $(tr '\\0' ' ' < $process/cmdline)\" in \
             'insula '*' {name} '*) kill -9 ${{process#/proc/}};; \
           esac; \
         done; sleep 0.2; kill -CONT {pid}; exit $middle",
        name = original.as_str(),
    );
    let sums = || directory.shell("sha256sum $D/state $D/memory").ok();
    // A snapshot can be quicker than who looks for it.
    let caught = (0..10).any(|_| {
        let before = sums();
        let mut taking = guest("snapshot")
            .args([original.as_str(), &directory.0])
            .spawn();
        let in_the_middle = directory.shell(&kill).code() == 0;
        let status = taking.wait().unwrap();
        if in_the_middle {
            assert!(!status.success());
            // The machine process hears of it, and gives the snapshot up.
            until("it is cleaned up", || directory.partials().is_empty());
            assert_eq!(sums(), before);
        }
        in_the_middle
    });
    assert!(caught, "it was always over already");

    // The guest runs, and its processes go on by themselves.
    assert_eq!(listed(&original)["state"], "running");
    let hostname = || original.vps("exec").args(["web", "--", "hostname"]).run();
    until("its VPS goes on", || hostname().code() == 0);
    let clone = GuestName::new("killed-copy");
    restore(&directory, &clone, &[]).ok();
    assert_eq!(in_web(&clone, "hostname"), "web");
    snapshot(&original, &directory, &[]).ok();
}

/// Waits for what comes by itself, for minutes at most.
fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..300 {
        if is_so() {
            return;
        }
        thread::sleep(Duration::from_millis(500));
    }
    panic!("waited in vain until {what}");
}

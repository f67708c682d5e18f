//! The core of it all on this machine's own KVM, where that is of the PVM kind.
//!
//! The other tests run on hardware or in the lab. Here every command is given
//! `--on pvm`. Kernels are emulated on such a host, and their boots take
//! seconds: one guest serves for all that one guest can show.

use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use insula_tests::{Finished, GuestName, Invocation, insula, json, kvm_kind};

use crate::forged::{self, Frame};
use crate::{elf, vector};

/// One guest at a time: an emulated kernel that gets half a processor falls
/// behind its own timer.
static ALONE: Mutex<()> = Mutex::new(());

/// Whether there is something to test, said past the test runner's capture.
fn is_pvm_host(test: &str) -> bool {
    let kind = kvm_kind();
    if kind == "pvm" {
        return true;
    }
    // Nobody can be told that nobody can be told.
    let _ = writeln!(
        std::io::stderr(),
        "{test}: not a PVM host (its KVM is {kind}): nothing was tested"
    );
    false
}

fn alone() -> MutexGuard<'static, ()> {
    // A test that failed has left nothing in it.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn on_pvm(args: &[&str]) -> Invocation {
    Invocation::new(insula()).args(["--on", "pvm"]).args(args)
}

fn vps(guest: &GuestName, args: &[&str]) -> Finished {
    let [verb, rest @ ..] = args else {
        panic!("insula vps what?");
    };
    on_pvm(&["vps", verb, "--guest", guest.as_str()])
        .args(rest)
        .run()
}

fn state(guest: &GuestName, name: &str) -> serde_json::Value {
    let list = json(&vps(guest, &["list", "--json"]).ok());
    let found = list
        .as_array()
        .and_then(|all| all.iter().find(|vps| vps["name"] == name));
    found
        .unwrap_or_else(|| panic!("no VPS {name} in {list}"))
        .clone()
}

/// What `guest list` has of a guest.
fn listed(guest: &GuestName) -> serde_json::Value {
    let list = json(&on_pvm(&["guest", "list", "--json"]).run().ok());
    let found = list
        .as_array()
        .and_then(|all| all.iter().find(|listed| listed["name"] == guest.as_str()));
    found
        .unwrap_or_else(|| panic!("no guest {} in {list}", guest.as_str()))
        .clone()
}

#[test]
fn on_a_pvm_host_a_guest_boots_and_its_vpss_live_and_reboot_apart() {
    if !is_pvm_host("VPSs on PVM") {
        return;
    }
    let _alone = alone();
    let guest = GuestName::on("pvm", "pvm");
    on_pvm(&["guest", "start", guest.as_str(), "--memory", "192M"])
        .args(["--cold"])
        .run()
        .ok();

    let counted = listed(&guest);
    let number = |value: &serde_json::Value, name: &str| {
        value[name]
            .as_u64()
            .unwrap_or_else(|| panic!("no {name} in {value}"))
    };
    let boot = number(&counted, "emulated_instructions");
    assert!(
        boot > 100_000,
        "a kernel booted without emulation: {counted}"
    );
    assert!(number(&counted, "exits") > 0);
    let repairs = &counted["repairs"];
    assert!(number(repairs, "syscalls") > 100, "{repairs}");
    let top = json(&on_pvm(&["guest", "top", "--once", "--json"]).run().ok());
    let row = top.as_array().into_iter().flatten();
    let row = row.into_iter().find(|row| row["name"] == guest.as_str());
    assert!(number(row.unwrap(), "emulated_instructions") >= boot);

    for name in ["web", "db"] {
        vps(&guest, &["create", name]).ok();
    }
    let script = "hostname; id -u; exit 7";
    let exec = vps(&guest, &["exec", "web", "--", "sh", "-c", script]);
    assert_eq!((exec.code(), &*exec.stdout), (7, "web\n0\n"), "{exec}");

    // The timer is only held back while a guest boots.
    let ticks = vps(&guest, &["exec", "web", "--", "sh", "-c", TICKS_OF_A_WHILE]).ok();
    let ticks: Vec<u64> = ticks.lines().map(|line| line.parse().unwrap()).collect();
    assert!(ticks[1] - ticks[0] > 10, "{ticks:?}");

    // Programs use all of the processor, whatever the guest's kernel is told.
    if is_x86_feature_detected!("avx") {
        for name in ["web", "db"] {
            put_vector_program(&guest, name);
        }
        thread::scope(|scope| {
            scope.spawn(|| vps(&guest, &["exec", "db", "--", "/vector", "x"]).ok());
            vps(
                &guest,
                &["exec", "web", "--", "sh", "-c", TWO_VECTOR_PROGRAMS],
            )
            .ok();
        });
    }

    let neighbour = state(&guest, "db");
    vps(&guest, &["exec", "web", "--", "reboot"]);
    let web = (0..300).find_map(|_| {
        let web = state(&guest, "web");
        let is_back = web["boot_count"] == 2 && web["state"] == "running";
        if !is_back {
            thread::sleep(Duration::from_millis(500));
        }
        is_back.then_some(web)
    });
    let web = web.unwrap_or_else(|| panic!("web has not booted again"));
    assert_eq!(web["last_exit"], "reboot", "{web}");
    let after = state(&guest, "db");
    assert_eq!(after["init_pid"], neighbour["init_pid"]);
    assert_eq!(after["boot_count"], 1);

    // A copy goes on where the original was, and apart from it.
    let dir = tempfile::tempdir().unwrap();
    let snapshot = dir.path().join("snapshot");
    let snapshot = snapshot.to_str().unwrap();
    on_pvm(&["guest", "snapshot", guest.as_str(), snapshot])
        .run()
        .ok();
    let copy = GuestName::on("pvm", "pvm-copy");
    on_pvm(&["guest", "restore", "--name", copy.as_str(), snapshot])
        .run()
        .ok();
    let exec = vps(&copy, &["exec", "web", "--", "hostname"]);
    assert_eq!((exec.code(), &*exec.stdout), (0, "web\n"), "{exec}");
    assert_eq!(state(&copy, "web")["boot_count"], 2);
    if is_x86_feature_detected!("avx") {
        vps(
            &copy,
            &["exec", "web", "--", "sh", "-c", TWO_VECTOR_PROGRAMS],
        )
        .ok();
    }
    let restored = number(&listed(&copy), "emulated_instructions");
    assert!(
        restored < boot,
        "a restored guest has emulated {restored} instructions, a boot {boot}"
    );
    on_pvm(&["guest", "stop", "--kill", copy.as_str()])
        .run()
        .ok();

    vps(&guest, &["destroy", "web", "--force"]).ok();
    let stopped = json(
        &on_pvm(&["guest", "stop", guest.as_str(), "--timeout", "5m", "--json"])
            .run()
            .ok(),
    );
    assert_eq!(stopped["exit_code"], 0, "{stopped}");
}

#[test]
fn on_a_pvm_host_programs_live_on_two_processors() {
    if !is_pvm_host("several processors on PVM") {
        return;
    }
    let _alone = alone();
    let guest = GuestName::on("pvm", "pvm-two");
    on_pvm(&["guest", "start", guest.as_str(), "--vcpus", "2"])
        .args(["--memory", "192M"])
        .run()
        .ok();
    vps(&guest, &["create", "web"]).ok();
    let script = "for i in $(seq 8); do \
            out=$(sh -c 'ls -l /bin | sort | tail -n 1; exit 7'); \
            echo $? ${out:+said}; \
        done";
    let ran = vps(&guest, &["exec", "web", "--", "sh", "-c", script]);
    assert_eq!(
        (ran.code(), &*ran.stdout),
        (0, &*"7 said\n".repeat(8)),
        "{ran}"
    );
    if is_x86_feature_detected!("avx") {
        put_vector_program(&guest, "web");
        let script = "/vector a & one=$!; /vector b & two=$!; /vector c & three=$!; \
            wait $one && wait $two && wait $three";
        vps(&guest, &["exec", "web", "--", "sh", "-c", script]).ok();
    }
    on_pvm(&["guest", "stop", "--kill", guest.as_str()])
        .run()
        .ok();
}

/// Timer interrupts so far, before and after three busy seconds.
const TICKS_OF_A_WHILE: &str = "ticks() { awk '/LOC:/ { print $2 }' /proc/interrupts; }; \
    ticks; end=$(($(date +%s) + 3)); while [ $(date +%s) -lt $end ]; do :; done; ticks";

/// Two that would see each other's registers.
const TWO_VECTOR_PROGRAMS: &str = "/vector y & /vector z; it=$?; wait $! && exit $it";

/// Puts the program `/vector` into a VPS.
fn put_vector_program(guest: &GuestName, name: &str) {
    let script = "cat > /vector && chmod +x /vector";
    on_pvm(&["vps", "exec", "--guest", guest.as_str(), name, "--"])
        .args(["sh", "-c", script])
        .stdin(vector::program())
        .run()
        .ok();
}

#[test]
fn on_a_pvm_host_an_instruction_that_nobody_repairs_ends_its_guest_alone() {
    if !is_pvm_host("refused instructions on PVM") {
        return;
    }
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("vmlinux");
    // xrstors [rsi]
    std::fs::write(&kernel, elf::executable(0x100_0000, &[0x0f, 0xc7, 0x1e])).unwrap();
    let map = "ffffffff81000000 T startup_64\nffffffff81001000 T _etext\n";
    std::fs::write(dir.path().join("System.map"), map).unwrap();
    let guest = GuestName::on("pvm", "refused");
    let kernel = kernel.to_str().unwrap();
    on_pvm(&["guest", "start", guest.as_str(), "--kernel", kernel])
        .run()
        .fails(
            22,
            &[
                "`xrstors",
                "0f c7 1e",
                "0x1000000",
                "startup_64",
                "kernel's code is emulated here",
            ],
        );
    assert_eq!(
        on_pvm(&["guest", "status", guest.as_str()]).run().code(),
        1,
        "something is left of it"
    );
}

#[test]
fn on_a_pvm_host_a_forged_page_fault_ends_its_guest_alone() {
    if !is_pvm_host("forged page faults on PVM") {
        return;
    }
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    for (frame, code) in [
        // It gets where a system call would get it, and resets its machine.
        (Frame::Perfect, 20),
        // It goes on in its handler, and has a triple fault.
        (Frame::OfSupervisor, 21),
        (Frame::OutsideMemory, 21),
        (Frame::Unmapped, 21),
    ] {
        let kernel = dir.path().join(format!("{frame:?}"));
        std::fs::write(&kernel, forged::kernel(frame)).unwrap();
        let guest = GuestName::on("pvm", "forged");
        let started = on_pvm(&["guest", "start", guest.as_str(), "--memory", "512M"])
            .args(["--kernel", kernel.to_str().unwrap()])
            .run();
        assert_eq!(started.code(), code, "{frame:?}: {started}");
        assert_eq!(
            on_pvm(&["guest", "status", guest.as_str()]).run().code(),
            1,
            "something is left of {frame:?}"
        );
    }
}

#[test]
fn on_hardware_is_refused_on_a_pvm_host_with_the_way_out() {
    if !is_pvm_host("--on hardware on PVM") {
        return;
    }
    let guest = GuestName::on("pvm", "elsewhere");
    Invocation::new(insula())
        .args(["--on", "hardware", "guest", "start", guest.as_str()])
        .run()
        .fails(1, &["PVM", "--on pvm", "--on lab"]);
}

//! VPSs in a guest: each a machine of its own.

use std::thread;

use insula_tests::{GuestName, json};

/// A guest with two VPSs, `web` and `db`.
fn pair(stem: &str) -> GuestName {
    let guest = GuestName::new(stem);
    guest.start(&[]).ok();
    for name in ["web", "db"] {
        guest.vps("create").args([name]).run().ok();
    }
    guest
}

#[test]
fn each_looks_like_a_machine_of_its_own() {
    let guest = pair("own");
    let inside = |name: &str, script: &str| {
        guest
            .vps("exec")
            .args([name, "--", "sh", "-c", script])
            .run()
            .ok()
    };
    assert_eq!(inside("web", "hostname"), "web");
    assert_eq!(inside("db", "hostname"), "db");
    assert_eq!(inside("web", "id -u"), "0");
    assert_eq!(inside("web", "readlink /proc/1/exe"), "/bin/busybox");

    for namespace in ["user", "pid", "mnt", "uts", "ipc", "net", "cgroup", "time"] {
        let link = format!("readlink /proc/self/ns/{namespace}");
        assert_ne!(
            inside("web", &link),
            inside("db", &link),
            "{namespace} namespace is shared"
        );
    }
    let (web, db) = (
        inside("web", "cat /proc/self/uid_map"),
        inside("db", "cat /proc/self/uid_map"),
    );
    assert_ne!(web, db, "the user ID ranges are the same");
    assert!(
        web.split_whitespace().nth(1) != Some("0"),
        "root inside is root outside: {web}"
    );

    let boot_id = "cat /proc/sys/kernel/random/boot_id";
    assert_ne!(inside("web", boot_id), inside("db", boot_id));
    // Root there cannot write it, nor does it keep others from having a /proc
    // of their own.
    let nested = "unshare -Urpfm sh -c 'mount -t proc none /proc && echo mounted'";
    let overwrite = "echo x > /proc/sys/kernel/random/boot_id || echo refused";
    let script = format!("{nested}; ({overwrite}) 2>/dev/null");
    assert_eq!(inside("web", &script), "mounted\nrefused");

    inside("web", "echo mine > /root/file && sleep 1000 & sleep 0.2");
    assert_eq!(inside("db", "ls /root"), "");
    assert!(
        !inside("db", "ps").contains("sleep 1000"),
        "db sees a process of web"
    );
    // The file's owner is the VPS's root although the ID range is its own.
    assert_eq!(inside("web", "stat -c %u:%g /root/file"), "0:0");
}

#[test]
fn a_reboot_from_inside_comes_back_and_a_halt_stays_down() {
    let guest = pair("reboot");
    let neighbour = guest.vps_state("db");
    let uptime = |name: &str| {
        let text = guest
            .vps("exec")
            .args([name, "--", "cat", "/proc/uptime"])
            .run()
            .ok();
        text.split_whitespace()
            .next()
            .and_then(|word| word.parse::<f64>().ok())
            .unwrap()
    };
    let note = || {
        let cat = ["web", "--", "cat", "/root/note"];
        guest.vps("exec").args(cat).run().ok()
    };
    let boot_id = || {
        let cat = ["web", "--", "cat", "/proc/sys/kernel/random/boot_id"];
        guest.vps("exec").args(cat).run().ok()
    };
    let first_boot = boot_id();
    let neighbour_uptime = uptime("db");
    guest
        .vps("exec")
        .args(["web", "--", "sh", "-c", "echo kept > /root/note"])
        .run()
        .ok();
    assert_eq!(guest.vps_state("web")["boot_count"], 1);

    guest.vps("exec").args(["web", "--", "reboot"]).run();
    let web = eventually("web has booted again", || {
        let web = guest.vps_state("web");
        (web["boot_count"] == 2 && web["state"] == "running").then_some(web)
    });
    assert_eq!(web["last_exit"], "reboot", "{web}");
    assert_eq!(note(), "kept");
    assert_ne!(boot_id(), first_boot);

    guest.vps("exec").args(["web", "--", "poweroff"]).run();
    eventually("web is down", || {
        (guest.vps_state("web")["state"] == "stopped").then_some(())
    });
    assert_eq!(guest.vps_state("web")["boot_count"], 2);

    let after = guest.vps_state("db");
    assert_eq!(
        after["init_pid"], neighbour["init_pid"],
        "the neighbour's init is another"
    );
    assert_eq!(after["boot_count"], 1);
    assert!(
        uptime("db") > neighbour_uptime,
        "the neighbour's clock went back"
    );

    // Down is not gone.
    guest.vps("start").args(["web"]).run().ok();
    assert_eq!(note(), "kept");
}

#[test]
fn exec_carries_streams_exit_codes_and_signals() {
    let guest = pair("exec");
    let exec = |args: &[&str]| guest.vps("exec").args(["web", "--"]).args(args);

    let both = exec(&["sh", "-c", "echo out; echo err >&2; exit 7"]).run();
    assert_eq!(
        (both.code(), both.stdout.as_str(), both.stderr.trim()),
        (7, "out\n", "err")
    );
    assert_eq!(
        exec(&["wc", "-c"]).stdin(vec![b'x'; 300_000]).run().ok(),
        "300000"
    );
    assert_eq!(exec(&["sh", "-c", "kill -9 $$"]).run().code(), 128 + 9);
    exec(&["no-such-program"])
        .run()
        .fails(127, &["no-such-program"]);
    exec(&["/etc/passwd"]).run().fails(126, &["/etc/passwd"]);
    let long = exec(&[
        "sh",
        "-c",
        "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done",
    ])
    .run()
    .ok();
    assert_eq!(long.lines().count(), 20_000, "output was lost");
    assert_eq!(
        guest
            .vps("exec")
            .args([
                "--env", "WHO=me", "--cwd", "/etc", "--user", "nobody", "web", "--"
            ])
            .args(["sh", "-c", "echo $WHO $PWD $(id -u)"])
            .run()
            .ok(),
        "me /etc 65534"
    );
    guest
        .vps("exec")
        .args(["nobody-home", "--", "true"])
        .run()
        .fails(1, &["nobody-home"]);
}

#[test]
fn many_run_at_once() {
    let guest = pair("many");
    thread::scope(|scope| {
        let runs: Vec<_> = (0..8)
            .map(|number: i32| {
                let run = guest
                    .vps("exec")
                    .args([if number % 2 == 0 { "web" } else { "db" }, "--"]);
                scope.spawn(move || {
                    run.args(["sh", "-c", &format!("sleep 0.1; exit {number}")])
                        .run()
                        .code()
                })
            })
            .collect();
        for (number, run) in (0..).zip(runs) {
            assert_eq!(run.join().unwrap(), number);
        }
    });
}

#[test]
fn limits_hold() {
    let guest = GuestName::new("limits");
    guest.start(&[]).ok();
    guest
        .vps("create")
        .args(["small", "--memory", "24M", "--pids", "20", "--cpus", "0.5"])
        .run()
        .ok();
    guest.vps("create").args(["other"]).run().ok();
    let small = |script: &str| {
        guest
            .vps("exec")
            .args(["small", "--", "sh", "-c", script])
            .run()
    };

    let bomb = small("dd if=/dev/zero of=/dev/null bs=40000000 count=1");
    assert_ne!(bomb.code(), 0, "40 MB fitted into 24 MiB: {bomb}");
    let forks = small("for i in $(seq 40); do sleep 5 & done; wait");
    assert!(
        forks.stderr.contains("fork"),
        "40 processes fitted into 20: {forks}"
    );
    eventually("the limit's refusals are counted", || {
        let usage = &guest.vps_state("small")["usage"];
        (usage["oom_kills"].as_u64() > Some(0) && usage["pids_refused"].as_u64() > Some(0))
            .then_some(())
    });
    guest.vps("exec").args(["other", "--", "true"]).run().ok();
}

#[test]
fn stop_restart_and_destroy() {
    let guest = pair("life");
    guest
        .vps("exec")
        .args(["web", "--", "touch", "/root/file"])
        .run()
        .ok();
    guest.vps("restart").args(["web"]).run().ok();
    assert_eq!(guest.vps_state("web")["boot_count"], 2);
    guest
        .vps("exec")
        .args(["web", "--", "ls", "/root/file"])
        .run()
        .ok();

    guest
        .vps("destroy")
        .args(["web"])
        .run()
        .fails(1, &["web", "running"]);
    guest.vps("stop").args(["web"]).run().ok();
    guest
        .vps("exec")
        .args(["web", "--", "true"])
        .run()
        .fails(1, &["web", "stopped", "insula vps start web"]);
    guest.vps("destroy").args(["web"]).run().ok();
    guest.vps("start").args(["web"]).run().fails(1, &["web"]);

    guest.vps("create").args(["web"]).run().ok();
    assert_ne!(
        guest
            .vps("exec")
            .args(["web", "--", "ls", "/root/file"])
            .run()
            .code(),
        0,
        "a new VPS has an old one's files"
    );
    guest
        .vps("create")
        .args(["web"])
        .run()
        .fails(1, &["web", "exists"]);
    guest
        .vps("create")
        .args(["Bad_Name"])
        .run()
        .fails(2, &["Bad_Name", "a-z"]);
    guest
        .vps("create")
        .args(["x", "--template", "nix"])
        .run()
        .fails(1, &["nix", "template"]);
    assert_eq!(
        json(&guest.vps("list").args(["--json"]).run().ok())
            .as_array()
            .map(Vec::len),
        Some(2)
    );
}

/// Looks until `look` finds something. The bound is only there so that a
/// failure ends: nothing depends on how long it takes.
#[track_caller]
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..100 {
        if let Some(found) = look() {
            return found;
        }
        thread::sleep(std::time::Duration::from_millis(200));
    }
    panic!("still not so: {what}");
}

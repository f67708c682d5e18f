//! Guests that stand still, are saved, and go on as machines of their own.

use std::thread;
use std::time::Duration;

use insula_tests::{Finished, GuestName, Invocation, host, insula, json};

/// A directory for a snapshot on the host of the guests, removed at the end.
pub(crate) struct Directory(pub(crate) String);

impl Directory {
    pub(crate) fn new(stem: &str) -> Self {
        Self(format!("/var/tmp/snapshot-{stem}-{}", std::process::id()))
    }

    /// A shell command on the host, in which `$D` is the directory.
    pub(crate) fn shell(&self, script: &str) -> Finished {
        let script = format!("D={}; {script}", self.0);
        host("sh").args(["-c", &script]).run()
    }

    /// The snapshots that were begun for this place and not finished.
    pub(crate) fn partials(&self) -> String {
        self.shell("ls -d $D.partial-* 2>/dev/null || true").ok()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = self.shell("chmod -R u+w $D* 2>/dev/null; rm -rf $D $D.* $D-*");
    }
}

/// Waits until a snapshot has begun in `$D`, for a minute at most.
pub(crate) const AWAIT_PARTIAL: &str = "n=0; until ls -d $D.partial-* >/dev/null 2>&1 || \
     [ $n = 3000 ]; do n=$((n+1)); sleep 0.02; done";

pub(crate) fn guest(verb: &str) -> Invocation {
    Invocation::new(insula()).args(["guest", verb])
}

pub(crate) fn snapshot(guest_name: &GuestName, directory: &Directory, more: &[&str]) -> Finished {
    guest("snapshot")
        .args([guest_name.as_str(), &directory.0])
        .args(more)
        .run()
}

pub(crate) fn restore(directory: &Directory, clone: &GuestName, more: &[&str]) -> Finished {
    guest("restore")
        .args([&directory.0, "--name", clone.as_str()])
        .args(more)
        .run()
}

pub(crate) fn in_web(guest: &GuestName, script: &str) -> String {
    guest
        .vps("exec")
        .args(["web", "--", "sh", "-c", script])
        .run()
        .ok()
}

/// A guest with a VPS called `web`.
pub(crate) fn start(stem: &str) -> GuestName {
    let guest = GuestName::new(stem);
    guest.start(&["--memory", "128M", "--disk", "256M"]).ok();
    guest.vps("create").args(["web"]).run().ok();
    guest
}

/// What the list of guests says of one.
pub(crate) fn listed(name: &GuestName) -> serde_json::Value {
    let list = json(&guest("list").args(["--json"]).run().ok());
    let mut all = list.as_array().unwrap().iter();
    let found = all.find(|guest| guest["name"] == name.as_str());
    found.unwrap().clone()
}

fn state(name: &GuestName) -> String {
    listed(name)["state"].as_str().unwrap().to_owned()
}

fn uptime(guest: &GuestName) -> f64 {
    let text = in_web(guest, "cat /proc/uptime");
    text.split(' ').next().unwrap().parse().unwrap()
}

fn seconds(text: &str) -> u64 {
    text.parse().unwrap()
}

#[test]
fn to_a_paused_guest_no_time_passes() {
    let web = start("pause");
    let before = uptime(&web);
    guest("pause").args([web.as_str()]).run().ok();
    assert_eq!(state(&web), "paused");
    guest("snapshot")
        .args([web.as_str(), "/var/tmp/never"])
        .run()
        .fails(1, &["paused", "resume"]);
    // Far longer than the commands before and after it take.
    thread::sleep(Duration::from_mins(1));
    guest("resume").args([web.as_str()]).run().ok();
    assert_eq!(state(&web), "running");
    let after = uptime(&web);
    assert!(after > before, "it does not go on: {before} {after}");
    assert!(after < before + 60.0, "time passed: {before} {after}");
    // The rest of the world did not wait.
    let host_clock = || seconds(&host("date").args(["+%s"]).run().ok());
    let begun = host_clock();
    let wall_clock = seconds(&in_web(&web, "date +%s"));
    assert!((begun - 1..=host_clock() + 1).contains(&wall_clock));

    // A paused guest is stopped like any other: it powers off.
    guest("pause").args([web.as_str()]).run().ok();
    let stopped = json(
        &guest("stop")
            .args([web.as_str(), "--timeout", "5m", "--json"])
            .run()
            .ok(),
    );
    assert_eq!(stopped["exit"], "clean");
}

#[test]
fn short_pauses_are_no_time_either() {
    // As on hosts whose counters never stop.
    let guest_with_counter = GuestName::new("counter");
    let machine = ["--memory", "128M", "--disk", "64M", "--cmdline"];
    guest_with_counter
        .start(&[machine.as_slice(), &["clocksource=tsc tsc=reliable"]].concat())
        .ok();
    guest_with_counter.vps("create").args(["web"]).run().ok();
    let current = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource";
    assert_eq!(in_web(&guest_with_counter, current), "tsc");
    let host_uptime = || {
        let text = host("cat").args(["/proc/uptime"]).run().ok();
        text.split(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let order = |verb: &str| guest(verb).args([guest_with_counter.as_str()]).run().ok();

    let begun = (host_uptime(), uptime(&guest_with_counter));
    let mut paused = 0.0;
    for _ in 0..5 {
        order("pause");
        paused -= host_uptime();
        paused += host_uptime();
        order("resume");
    }
    // Asked in the other order: the host's span is the longer one.
    let ended_in_guest = uptime(&guest_with_counter);
    let on_host = host_uptime() - begun.0;
    let in_guest = ended_in_guest - begun.1;
    assert!(paused > 0.0);
    assert!(
        in_guest < on_host - paused + 0.1,
        "{in_guest} s in the guest, {on_host} s outside, paused for {paused} s"
    );
}

#[test]
fn clones_go_on_and_are_machines_of_their_own() {
    let original = start("clones");
    let directory = Directory::new("clones");
    let work = "echo kept > /root/file; sync; echo same > /tmp/memory; \
                (n=0; while true; do n=$((n+1)); echo $n > /tmp/next; \
                mv /tmp/next /tmp/count; sleep 0.2; done) \
                > /dev/null 2>&1 < /dev/null &";
    in_web(&original, work);
    // As systemd does when there is none yet.
    in_web(
        &original,
        "tr -d - < /run/host/container-uuid > /etc/machine-id",
    );
    let identity = "cat /proc/sys/kernel/random/boot_id /run/host/container-uuid /etc/machine-id";
    snapshot(&original, &directory, &[]).ok();
    let count = |guest: &GuestName| in_web(guest, "cat /tmp/count").parse::<u64>().unwrap_or(0);
    let at_snapshot = count(&original);

    let names = GuestName::new("copy");
    let clones = json(&restore(&directory, &names, &["--count", "2", "--json"]).ok());
    assert_eq!(clones.as_array().unwrap().len(), 2, "{clones}");
    let [first, second] = [1, 2].map(|number| Clone(format!("{}-{number}", names.as_str())));
    let mut seen = Vec::new();
    for clone in [&first, &second] {
        assert_eq!(
            clone.shell("web", "cat /root/file /tmp/memory"),
            "kept\nsame"
        );
        let status = clone.status();
        assert_eq!(status["start"], "restored", "{status}");
        seen.push(clone.shell("web", "cat /proc/sys/kernel/random/uuid"));
        let own = clone.shell("web", identity);
        let [_, uuid, machine_id] = own.lines().collect::<Vec<_>>()[..] else {
            panic!("{own}");
        };
        assert_eq!(uuid.replace('-', ""), machine_id);
        seen.extend(own.lines().map(str::to_owned));
        seen.push(clone.shell("web", "head -c 16 /dev/urandom | od -An -tx1"));
        seen.push(clone.cid());
        // Its process goes on from where it was.
        let begun = clone.shell("web", "cat /tmp/count").parse::<u64>().unwrap();
        thread::sleep(Duration::from_secs(2));
        let later = clone.shell("web", "cat /tmp/count").parse::<u64>().unwrap();
        assert!(
            later > begun && begun + 50 > at_snapshot / 2,
            "{begun} {later}"
        );
    }
    seen.push(in_web(&original, "cat /proc/sys/kernel/random/uuid"));
    seen.extend(in_web(&original, identity).lines().map(str::to_owned));
    let all = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), all, "two of them share something: {seen:?}");

    // What one writes, no other sees, nor does the snapshot.
    first.shell("web", "echo mine > /root/file; sync");
    assert_eq!(second.shell("web", "cat /root/file"), "kept");
    restore(&directory, &names, &["--count", "1"]).fails(1, &["already runs"]);
    assert_eq!(first.shell("web", "cat /root/file"), "mine");
}

#[test]
fn an_incremental_snapshot_holds_what_changed_and_restores_all() {
    let original = start("incremental");
    let (base, change) = (Directory::new("base"), Directory::new("change"));
    snapshot(&original, &change, &["--incremental"]).fails(1, &["full one first"]);
    in_web(
        &original,
        "echo one > /tmp/one; head -c 8000000 /dev/zero | tr '\\0' x > /tmp/x",
    );
    let full = json(&snapshot(&original, &base, &["--json"]).ok());
    in_web(&original, "echo two > /tmp/two");
    let some = json(&snapshot(&original, &change, &["--incremental", "--stop", "--json"]).ok());
    let bytes = |taken: &serde_json::Value| taken["memory_bytes"].as_u64().unwrap();
    assert!(bytes(&some) * 2 < bytes(&full), "{full} {some}");

    let clone = GuestName::new("incremental-copy");
    restore(&change, &clone, &[]).ok();
    assert_eq!(in_web(&clone, "cat /tmp/one /tmp/two"), "one\ntwo");
    assert_eq!(
        in_web(&clone, "tr -d x < /tmp/x | wc -c; wc -c < /tmp/x"),
        "0\n8000000"
    );
    // Its memory is in many small mappings of both layers.
    let memory = memory_of(&clone);
    assert!(
        memory["guest"]["rss"].as_u64() > Some(8_000_000),
        "{memory}"
    );
    assert!(memory["vmm"]["rss"].as_u64() < Some(8_000_000), "{memory}");
    let older = GuestName::new("incremental-older");
    restore(&base, &older, &[]).ok();
    assert_eq!(
        in_web(&older, "cat /tmp/one; ls /tmp/two 2>/dev/null || true"),
        "one"
    );
}

#[test]
fn spoilt_snapshots_are_refused_before_anything_runs() {
    let original = start("spoilt");
    let good = Directory::new("spoilt");
    snapshot(&original, &good, &["--stop"]).ok();
    let clone = GuestName::new("spoilt-copy");
    // What each does to the copy in $D.x, and what is said of it.
    let edit = "printf X | dd of=$D.x/FILE bs=1 seek=OFFSET conv=notrunc 2>/dev/null";
    let spoil = [
        ("truncate -s 100 $D.x/state".to_owned(), "truncated"),
        (edit.replace("FILE", "state").replace("OFFSET", "2000"), "altered"),
        (edit.replace("FILE", "state").replace("OFFSET", "0"), "not the state"),
        (edit.replace("FILE", "memory").replace("OFFSET", "2000000"), "altered"),
        ("truncate -s 1M $D.x/memory".to_owned(), "truncated"),
        ("printf X | dd of=$D.x/disks/$(ls $D.x/disks | head -n 1) bs=1 seek=5000 conv=notrunc 2>/dev/null".to_owned(), "altered"),
        ("printf '\\377\\377' | dd of=$D.x/state bs=1 seek=8 conv=notrunc 2>/dev/null".to_owned(), "version"),
        ("rm $D.x/state".to_owned(), "no snapshot"),
    ];
    for (how, word) in spoil {
        good.shell(&format!(
            "rm -rf $D.x; cp -a --sparse=always $D $D.x; {how}"
        ))
        .ok();
        let copy = format!("{}.x", good.0);
        guest("restore")
            .args([copy.as_str(), "--name", clone.as_str()])
            .run()
            .fails(25, &[word]);
        let list = guest("list").run().ok();
        assert!(!list.contains(clone.as_str()), "{how} left a guest: {list}");
    }
    restore(&good, &clone, &[]).ok();
    assert_eq!(in_web(&clone, "hostname"), "web");
}

#[test]
fn a_failed_snapshot_leaves_the_old_one_and_the_guest() {
    let original = start("full");
    let room = Directory::new("full");
    room.shell("mkdir $D && mount -t tmpfs -o size=64M none $D")
        .ok();
    let inside = Directory(format!("{}/s", room.0));
    snapshot(&original, &inside, &[]).ok();
    // Not enough left for another one beside it.
    let before = inside.shell("sha256sum $D/state $D/memory").ok();
    inside
        .shell("dd if=/dev/zero of=$D/../fill bs=1M 2>/dev/null; true")
        .ok();
    snapshot(&original, &inside, &[]).fails(26, &["no room"]);
    assert_eq!(inside.shell("sha256sum $D/state $D/memory").ok(), before);
    assert_eq!(in_web(&original, "hostname"), "web");

    // Killed in the middle: the guest is gone, the old snapshot is not.
    inside.shell("rm $D/../fill").ok();
    let pid = listed(&original)["pid"].to_string();
    let mut taking = guest("snapshot")
        .args([original.as_str(), &inside.0])
        .spawn();
    let waited = format!("{AWAIT_PARTIAL}; kill -9 {pid}");
    inside.shell(&waited).ok();
    let _ = taking.wait();
    let clone = GuestName::new("full-copy");
    assert_eq!(inside.shell("sha256sum $D/state $D/memory").ok(), before);
    assert!(!inside.partials().is_empty(), "it was not in the middle");
    restore(&inside, &clone, &[]).ok();
    assert_eq!(in_web(&clone, "hostname"), "web");
    // What the dead process left goes with the next snapshot.
    snapshot(&clone, &inside, &[]).ok();
    assert_eq!(inside.partials(), "");
    guest("stop").args(["--kill", clone.as_str()]).run().ok();
    room.shell("umount $D").ok();
}

fn memory_of(name: &GuestName) -> serde_json::Value {
    let list = json(&guest("list").args(["--memory", "--json"]).run().ok());
    let mut all = list.as_array().unwrap().iter();
    let found = all.find(|guest| guest["name"] == name.as_str());
    found.unwrap()["memory"].clone()
}

#[test]
fn memory_is_told_by_part() {
    let original = start("memory");
    let memory = memory_of(&original);
    let pss = |part: &str| memory[part]["pss"].as_u64().unwrap();
    assert_eq!(pss("total"), pss("guest") + pss("vmm"));
    assert!(
        pss("guest") > 8 << 20 && pss("guest") < 128 << 20,
        "{memory}"
    );
    assert!(pss("vmm") < 16 << 20, "{memory}");
}

/// A guest that was restored with others.
pub(crate) struct Clone(pub(crate) String);

impl Clone {
    pub(crate) fn shell(&self, vps: &str, script: &str) -> String {
        Invocation::new(insula())
            .args([
                "vps", "exec", "--guest", &self.0, vps, "--", "sh", "-c", script,
            ])
            .run()
            .ok()
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        json(&guest("status").args([&self.0, "--json"]).run().ok())
    }

    fn cid(&self) -> String {
        let path = format!("/run/insula/{}/machine.json", self.0);
        let config = json(&host("cat").args([path]).run().ok());
        config["vsock"]["guest_cid"].to_string()
    }
}

impl Drop for Clone {
    fn drop(&mut self) {
        let _ = guest("stop").args(["--kill", &self.0]).run();
    }
}

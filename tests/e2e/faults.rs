//! Processes that are killed, files that are spoilt, devices that are missing.

use std::thread;
use std::time::Duration;

use insula_tests::{GuestName, Invocation, footprint, host, in_lab, insula, json};

/// What `insula` is called on the host of the guests.
fn insula_on_host() -> String {
    if in_lab() {
        "insula".to_owned()
    } else {
        insula().display().to_string()
    }
}

/// The PID of a guest's machine process, if there is such a guest.
fn machine_process(guest: &str) -> Option<u64> {
    let list = json(
        &Invocation::new(insula())
            .args(["guest", "list", "--json"])
            .run()
            .ok(),
    );
    list.as_array()?
        .iter()
        .find(|entry| entry["name"] == guest)?["pid"]
        .as_u64()
}

#[test]
fn a_killed_machine_is_seen_and_cleaned_by_the_next_command() {
    let guest = GuestName::new("killed");
    let before = footprint(guest.as_str());
    guest.start(&[]).ok();
    let pid = machine_process(guest.as_str()).unwrap();
    host("kill").args(["-9", &pid.to_string()]).run().ok();

    guest
        .vps("create")
        .args(["web"])
        .run()
        .fails(1, &[guest.as_str(), "not running"]);
    guest.start(&[]).ok();
    guest.vps("create").args(["web"]).run().ok();
    Invocation::new(insula())
        .args(["guest", "stop", guest.as_str()])
        .run()
        .ok();
    assert_eq!(footprint(guest.as_str()), before);
}

#[test]
fn definitions_and_files_survive_a_killed_machine() {
    let guest = GuestName::new("survive");
    let data = format!("/var/tmp/{}.ext4", guest.as_str());
    guest.start(&["--data", &data]).ok();
    guest.vps("create").args(["web", "--autostart"]).run().ok();
    guest
        .vps("exec")
        .args(["web", "--", "sh", "-c", "echo kept > /root/note; sync"])
        .run()
        .ok();
    let pid = machine_process(guest.as_str()).unwrap();
    host("kill").args(["-9", &pid.to_string()]).run().ok();

    guest.start(&["--data", &data]).ok();
    assert_eq!(guest.vps_state("web")["state"], "running");
    let note = guest
        .vps("exec")
        .args(["web", "--", "cat", "/root/note"])
        .run();
    assert_eq!(note.ok(), "kept");
    Invocation::new(insula())
        .args(["guest", "stop", guest.as_str()])
        .run()
        .ok();
    host("rm").args([&data]).run().ok();
}

#[test]
fn a_killed_command_line_leaves_nothing_for_long() {
    let before = footprint("run-");
    let mut child = Invocation::new(insula())
        .args(["run", "--", "sleep", "86399"])
        .spawn();
    // On the host of the guests: every command line with our odd number in it.
    let kill = "for dir in /proc/[0-9]*; do \
         line=$(tr '\\0' ' ' < $dir/cmdline 2>/dev/null) || continue; \
         case \"$line\" in *insula\\ run*86399*) kill -9 ${dir#/proc/}; echo killed;; esac; done";
    let mut killed = false;
    for _ in 0..100 {
        // Only once its guest is there: that is what may be left behind.
        if footprint("run-")
            .beyond(&before)
            .iter()
            .any(|item| item.starts_with("process"))
        {
            killed = host("sh").args(["-c", kill]).run().ok().contains("killed");
            break;
        }
        thread::sleep(Duration::from_millis(200));
    }
    let _ = child.kill();
    let _ = child.wait();
    assert!(killed, "the command never got as far as a guest");

    Invocation::new(insula()).args(["guest", "list"]).run().ok();
    let after = footprint("run-");
    let left: Vec<_> = after
        .beyond(&before)
        .into_iter()
        .filter(|item| !item.contains("/proc"))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn a_full_data_disk_is_its_users_problem_alone() {
    let guest = GuestName::new("full");
    guest.start(&["--disk", "64M"]).ok();
    guest.vps("create").args(["hog"]).run().ok();
    let full = guest
        .vps("exec")
        .args(["hog", "--", "sh", "-c", "cat /dev/zero > /root/hog"])
        .run();
    full.fails(1, &["No space left"]);
    guest
        .vps("exec")
        .args(["hog", "--", "rm", "/root/hog"])
        .run()
        .ok();
    guest.vps("create").args(["next"]).run().ok();
    guest.vps("exec").args(["next", "--", "true"]).run().ok();
}

#[test]
fn a_corrupt_template_is_refused_by_its_hash() {
    let guest = GuestName::new("corrupt");
    // A cache of its own, so that nobody else meets the spoilt file.
    let script = r#"
set -e
copy=/var/tmp/$0
cp -a "${INSULA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/insula}" "$copy"
for image in $(find "$copy/template" -name '*.erofs'); do
  cp "$image" "$image.new"; printf X | dd of="$image.new" bs=1 seek=70000 conv=notrunc 2>/dev/null
  mv "$image.new" "$image"
done
code=0
INSULA_CACHE=$copy "$1" --on hardware guest start "$0" || code=$?
rm -rf "$copy"
exit $code
"#;
    let program = insula_on_host();
    let before = footprint(guest.as_str());
    host("sh")
        .args(["-c", script, guest.as_str(), &program])
        .run()
        .fails(1, &["busybox", "damaged"]);
    assert_eq!(footprint(guest.as_str()), before);
}

#[test]
fn a_missing_kvm_device_is_named_with_what_to_do() {
    let guest = GuestName::new("nokvm");
    let script = "mount --bind /dev/null /dev/kvm && exec \"$1\" --on hardware guest start \"$0\"";
    let program = insula_on_host();
    let failed = host("unshare")
        .args(["--mount", "sh", "-c", script, guest.as_str(), &program])
        .run();
    assert!(matches!(failed.code(), 1 | 22), "{failed}");
    assert!(failed.stderr.contains("/dev/kvm"), "{failed}");
    assert!(
        footprint(guest.as_str())
            .beyond(&footprint("nothing-has-this-name"))
            .is_empty()
    );
}

#[test]
fn unknown_fields_of_a_configuration_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("guest.toml");
    std::fs::write(&path, "vcpus = 1\nmemmory = \"64M\"\n").unwrap();
    let guest = GuestName::new("config");
    guest
        .start(&["--config", path.to_str().unwrap()])
        .fails(2, &["memmory", "guest.toml"]);
}

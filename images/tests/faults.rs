//! Builders that are killed, that come in twos, and that run out of disk: each in a
//! process of its own, which is this test program again.

#![allow(
    clippy::unwrap_used,
    reason = "clippy takes only functions marked #[test] for tests"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use images::error::IoContext;
use images::{Cache, Entry, Inputs, Kind, Progress, Result};

/// Says what a builder is to do, and in which cache.
const ROLE: &str = "INSULA_TEST_BUILDER";
const CACHE: &str = "INSULA_TEST_CACHE";

/// Builds the one image of these tests.
fn ensure(cache: &Cache, build: impl FnOnce(&Path) -> Result<()>) -> Result<Entry> {
    let inputs = Inputs::new().text("version", "1");
    let progress = Progress::stderr();
    cache.ensure(Kind::Template, "fake", &inputs, &progress, build)
}

fn write(dir: &Path, content: &[u8]) -> Result<()> {
    let path = dir.join("image");
    fs::write(&path, content).at("write", &path)
}

/// Not a test: what a builder's process does.
#[test]
fn builder() {
    let (Ok(role), Some(dir)) = (std::env::var(ROLE), std::env::var_os(CACHE)) else {
        return;
    };
    let cache = Cache::at(&dir);
    let log = PathBuf::from(&dir).join("builds.log");
    match role.as_str() {
        "hangs" => {
            let hang = |out: &Path| {
                write(out, b"half")?;
                eprintln!("half done");
                std::thread::sleep(Duration::from_mins(2));
                Ok(())
            };
            ensure(&cache, hang).unwrap();
        }
        "builds" => {
            let build = |out: &Path| {
                let mut builds = fs::read_to_string(&log).unwrap_or_default();
                builds.push_str("built\n");
                fs::write(&log, builds).at("write", &log)?;
                eprintln!("building");
                std::thread::sleep(Duration::from_millis(300));
                write(out, b"whole")
            };
            assert!(ensure(&cache, build).unwrap().path("image").is_file());
        }
        // Writes more than there is room for: itself, and through a program.
        "fills the disk" => {
            let direct = ensure(&cache, |out| write(out, &vec![1; 4 << 20]));
            let program = ensure(&cache, |out| {
                let mut dd = Command::new("dd");
                dd.args(["if=/dev/zero", "bs=1M", "count=4"])
                    .arg(format!("of={}", out.join("image").display()));
                images::command::run(&mut dd).map(drop)
            });
            for failed in [direct, program] {
                let message = failed.unwrap_err().to_string();
                for wanted in ["INSULA_CACHE", "image prune", dir.to_str().unwrap()] {
                    assert!(message.contains(wanted), "{message}");
                }
                assert_eq!(message.lines().count(), 1, "{message}");
            }
            assert_nothing_in(&cache);
        }
        other => panic!("no role {other}"),
    }
}

fn builder_command(mut command: Command, role: &str, cache: &Path) -> Child {
    command
        .args(["--exact", "builder", "--nocapture"])
        .env(ROLE, role)
        .env(CACHE, cache)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn spawn(role: &str, cache: &Path) -> Child {
    let this = Command::new(std::env::current_exe().unwrap());
    builder_command(this, role, cache)
}

/// Reads what a builder says until it says `wanted`.
fn wait_for(child: &mut Child, wanted: &str) -> BufReader<impl Read + use<>> {
    let mut reader = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains(wanted) {
        assert!(
            reader.read_line(&mut said).unwrap() > 0,
            "the builder ended: {said}"
        );
    }
    reader
}

fn assert_nothing_in(cache: &Cache) {
    assert!(cache.list().unwrap().is_empty());
    let left = fs::read_dir(cache.root().join("template")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn a_killed_builder_leaves_no_image_and_the_next_one_builds() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path());
    let mut child = spawn("hangs", dir.path());
    let _stderr = wait_for(&mut child, "half done");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(cache.list().unwrap().is_empty());
    assert!(cache.verify().unwrap().is_empty());
    let entry = ensure(&cache, |out| write(out, b"whole")).unwrap();
    assert_eq!(fs::read(entry.path("image")).unwrap(), b"whole");
    // What the first one left is gone.
    let there = fs::read_dir(dir.path().join("template")).unwrap();
    assert_eq!(there.count(), 1);
}

#[test]
fn builders_in_two_processes_wait_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = spawn("builds", dir.path());
    let _stderr = wait_for(&mut first, "building");
    let mut second = spawn("builds", dir.path());
    let _second_stderr = wait_for(&mut second, "waiting for another build of template 'fake'");
    assert!(first.wait().unwrap().success());
    assert!(second.wait().unwrap().success());
    let builds = fs::read_to_string(dir.path().join("builds.log")).unwrap();
    assert_eq!(builds, "built\n");
}

#[test]
fn a_full_disk_is_one_clear_message_and_no_half_image() {
    // A mount namespace of its own: the small file system goes with the process.
    let in_namespace = |script: &str| {
        let mut unshare = Command::new("unshare");
        let own_user = !rustix::process::geteuid().is_root();
        unshare.args(own_user.then_some("--map-root-user"));
        unshare.args(["--mount", "sh", "-ec", script, "sh"]);
        unshare
    };
    let dir = tempfile::tempdir().unwrap();
    let mount = "mount -t tmpfs -o size=1m tmpfs \"$1\"";
    let probe = in_namespace(mount).arg(dir.path()).status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no tmpfs can be mounted here (it takes root or user namespaces)");
        return;
    }
    let mut command = in_namespace(&format!("{mount}; shift; exec \"$@\""));
    command.arg(dir.path());
    command.arg(std::env::current_exe().unwrap());
    let child = builder_command(command, "fills the disk", dir.path());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

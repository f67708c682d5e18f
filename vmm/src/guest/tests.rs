//! Tests of the life of a run directory, with a shell script as the machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use guest_agent::protocol::Name;

use super::*;
use crate::config::ReadyTimeout;

/// `find_vmm` looks at the environment, which is the whole process's.
static ENVIRONMENT: Mutex<()> = Mutex::new(());

struct Fixture {
    dir: tempfile::TempDir,
    root: RunRoot,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = RunRoot::at(dir.path().join("run")).unwrap();
        Self { dir, root }
    }

    fn spec(&self) -> GuestSpec {
        let kernel = self.dir.path().join("vmlinux");
        fs::write(&kernel, "kernel").unwrap();
        GuestSpec::new(kernel, "console=ttyS0 reboot=k panic=-1")
    }

    /// A program that is started as `insula-vmm` is and does `body`, with the
    /// guest's directory in `$2` and the ready pipe's number in `$4`.
    fn machine(&self, body: &str) -> PathBuf {
        let path = self.dir.path().join("insula-vmm");
        fs::write(&path, format!("#!/bin/bash\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn start(&self, name: &str, machine: &Path, spec: &GuestSpec) -> Result<Guest, GuestError> {
        let _one_at_a_time = ENVIRONMENT.lock();
        // SAFETY: whoever reads or writes this variable in this test program
        // holds the lock above.
        unsafe { std::env::set_var(VMM_ENV, machine) };
        self.root.reserve(&name.parse().unwrap())?.start(spec, None)
    }

    fn names(&self) -> Vec<String> {
        self.root
            .guests()
            .unwrap()
            .iter()
            .map(|guest| guest.name().to_string())
            .collect()
    }
}

/// A machine that becomes ready and stays. It makes no other process that
/// would hold its lock, and keeps the arguments that it is found by.
const STAYS: &str = r#"mkfifo $2/fifo
echo '{"pid":'$$',"phase":"ready","spans":{"init":5}}' > $2/status.json
echo '{"ready":{"spans":{"init":5}}}' >&$4; eval "exec $4>&-"
read -t 1000 <> $2/fifo"#;

#[test]
fn a_guest_lives_as_long_as_its_process() {
    let fixture = Fixture::new();
    let machine = fixture.machine(STAYS);
    let guest = fixture.start("web", &machine, &fixture.spec()).unwrap();
    let status = guest.dir().status().unwrap();
    assert_eq!(
        (status.state, status.pid),
        (GuestState::Running, guest.pid())
    );
    assert_eq!(status.spans["init"], 5);
    assert_eq!(status.record.unwrap().memory_bytes, 512 << 20);

    let taken = fixture.start("web", &machine, &fixture.spec()).unwrap_err();
    assert!(matches!(taken, GuestError::NameTaken { .. }), "{taken}");
    assert!(
        taken.to_string().contains("insula guest stop web"),
        "{taken}"
    );

    let dir = guest.dir().clone();
    drop(guest); // not ephemeral: goes on
    assert!(dir.is_alive().unwrap());
    assert!(fixture.root.sweep().unwrap().is_empty());
    assert_eq!(dir.stop(Duration::ZERO).unwrap(), Ended::Signal(9));
    assert!(!dir.exists());
    assert!(fixture.names().is_empty());
}

#[test]
fn what_a_killed_guest_left_is_seen_and_swept() {
    let fixture = Fixture::new();
    let guest = fixture
        .start("web", &fixture.machine(STAYS), &fixture.spec())
        .unwrap();
    let dir = guest.dir().clone();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(guest.pid().unwrap() as i32).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    drop(guest);
    while dir.is_alive().unwrap() {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(dir.status().unwrap().state, GuestState::Dead);
    let name: Name = "web".parse().unwrap();
    assert!(matches!(
        fixture.root.find_living(&name),
        Err(GuestError::Dead { ended: None, .. })
    ));
    assert_eq!(fixture.root.sweep().unwrap(), [name]);
    assert!(fixture.names().is_empty());
}

#[test]
fn a_dead_guest_gives_its_name_free() {
    let fixture = Fixture::new();
    let left = fixture.root.path().join("web");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("lock"), "").unwrap();
    fs::write(
        left.join("status.json"),
        r#"{"pid":1,"phase":"ended","exit":{"code":20}}"#,
    )
    .unwrap();

    let dir = fixture.root.find(&"web".parse().unwrap()).unwrap();
    assert_eq!(dir.ended(), Some(Ended::Panicked));
    assert!(
        fixture.root.sweep().unwrap().is_empty(),
        "a guest that said how it ended is kept"
    );

    let reservation = fixture.root.reserve(dir.name()).unwrap();
    assert!(!left.join("status.json").exists());
    assert!(matches!(
        fixture.root.reserve(dir.name()),
        Err(GuestError::NameTaken { .. })
    ));
    drop(reservation);
    assert!(
        fixture.names().is_empty(),
        "an unused reservation leaves nothing"
    );
}

#[test]
fn a_failed_start_says_why_and_leaves_nothing() {
    let fixture = Fixture::new();
    let panicked = r#"echo "Kernel panic - not syncing" > $2/console.log
echo '{"error":{"message":"the guest panicked"}}' >&$4; exit 20"#;
    let error = fixture
        .start("web", &fixture.machine(panicked), &fixture.spec())
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("web did not start: the guest panicked"),
        "{text}"
    );
    assert!(text.contains("Kernel panic - not syncing"), "{text}");
    let GuestError::Start { failure, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(failure.ended, Ended::Panicked);

    let error = fixture
        .start(
            "web",
            &fixture.machine("echo cannot open it >&2; exit 22"),
            &fixture.spec(),
        )
        .unwrap_err();
    assert!(error.to_string().contains("cannot open it"), "{error}");

    let mut spec = fixture.spec();
    spec.kernel = fixture.dir.path().join("nowhere");
    let error = fixture
        .start("web", &fixture.machine(STAYS), &spec)
        .unwrap_err();
    assert!(
        matches!(
            error,
            GuestError::Missing {
                what: "the kernel",
                ..
            }
        ),
        "{error}"
    );

    let error = fixture
        .start("web", Path::new("/no/insula-vmm"), &fixture.spec())
        .unwrap_err();
    assert!(error.to_string().contains("INSULA_VMM"), "{error}");
    assert!(fixture.names().is_empty());
}

#[test]
fn an_interrupted_start_leaves_nothing() {
    let fixture = Fixture::new();
    let machine = fixture.machine("exec sleep 1000");
    let _one_at_a_time = ENVIRONMENT.lock();
    // SAFETY: as in `Fixture::start`.
    unsafe { std::env::set_var(VMM_ENV, &machine) };
    let (interrupt, mut sender) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut sender, b"x").unwrap();
    let reservation = fixture.root.reserve(&"web".parse().unwrap()).unwrap();
    let mut spec = fixture.spec();
    spec.ready_timeout = ReadyTimeout::try_from(1_u64).unwrap();
    let fd = std::os::fd::AsFd::as_fd(&interrupt);
    let error = reservation.start(&spec, Some(fd)).unwrap_err();
    assert!(matches!(error, GuestError::Interrupted { .. }), "{error}");
    assert!(fixture.names().is_empty());
}

#[test]
fn a_dropped_ephemeral_guest_is_gone() {
    let fixture = Fixture::new();
    let mut spec = fixture.spec();
    spec.ephemeral = true;
    let guest = fixture
        .start("run-1", &fixture.machine(STAYS), &spec)
        .unwrap();
    let pid = guest.pid().unwrap();
    drop(guest);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(fixture.names().is_empty());
}

#[test]
fn unknown_guests_are_told_with_those_that_run() {
    let fixture = Fixture::new();
    let _main = fixture.root.reserve(&"main".parse().unwrap()).unwrap();
    let error = fixture.root.find(&"web".parse().unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no guest web: these are running: main; see `insula guest list`"
    );
}

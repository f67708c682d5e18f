//! VPSs of a service on this machine's own kernel.
//!
//! They need root, cgroup v2 and a busybox root, so they run in the lab:
//! `INSULA_TEST_ROOT=DIR vps-… --ignored`, with the agent in `INSULA_TEST_AGENT`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(all(feature = "agent", feature = "client"))]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use guest_agent::client::{Captured, Client, Endpoint};
use guest_agent::protocol::{
    Code, EventKind, Exec, Exit, Init, Limits, Message, Name, RestartPolicy, Run, Target, Terminal,
    VpsSpec, VpsState,
};
use support::{LONG, eventually, exec, read_until};

struct Service {
    child: std::process::Child,
    directory: tempfile::TempDir,
}

impl Service {
    fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    fn start_in(directory: tempfile::TempDir) -> Self {
        let agent = std::env::var("INSULA_TEST_AGENT").unwrap();
        let root = std::env::var("INSULA_TEST_ROOT").unwrap();
        let child = Command::new(agent)
            .args(["service", "--socket"])
            .arg(directory.path().join("agent.sock"))
            .arg("--state")
            .arg(directory.path().join("state"))
            .args(["--template", &format!("busybox={root}")])
            .spawn()
            .unwrap();
        Self { child, directory }
    }

    fn client(&self) -> Client {
        let endpoint = Endpoint::Unix(self.directory.path().join("agent.sock"));
        Client::connect_until(&endpoint, Instant::now() + LONG).unwrap()
    }

    fn up(&self, spec: VpsSpec) {
        let name = spec.name.clone();
        self.client().vps_create(spec).unwrap();
        self.client().vps_start(&name).unwrap();
    }

    fn sh(&self, vps: &str, script: &str) -> Captured {
        self.client()
            .exec(in_vps(vps, script))
            .capture(b"", LONG)
            .unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Ok(mut client) =
            Client::connect(&Endpoint::Unix(self.directory.path().join("agent.sock")))
        {
            let _ = client.power_off();
            let _ = self.child.wait();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn in_vps(vps: &str, script: &str) -> Exec {
    Exec {
        target: Target::Vps(name(vps)),
        ..exec(&["sh", "-c", script])
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn spec(vps: &str) -> VpsSpec {
    VpsSpec {
        name: name(vps),
        template: name("busybox"),
        hostname: None,
        init: Init::Command(vec!["sleep".into(), "100000".into()]),
        limits: Limits::default(),
        autostart: false,
        restart: RestartPolicy::AllowReboot,
    }
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn a_vps_lives_and_leaves_nothing() {
    let service = Service::start();
    let mut limited = spec("web");
    limited.limits = Limits {
        memory_bytes: Some(64 << 20),
        pids: Some(50),
        ..Limits::default()
    };
    service.up(limited);
    let got = service.sh("web", "hostname; id -u; cat; exit 9");
    assert_eq!(
        (got.exit, &got.stdout[..]),
        (Exit::Code(9), &b"web\n0\n"[..])
    );
    let outside = service
        .client()
        .exec(exec(&["uname", "-n"]))
        .capture(b"", LONG)
        .unwrap();
    assert_eq!(outside.exit, Exit::Code(0));
    assert_ne!(outside.stdout, b"web\n");
    let error = service.client().vps_create(spec("web")).unwrap_err();
    assert_eq!(error.code(), Some(Code::Exists));
    let error = service.client().vps_start(&name("web")).unwrap_err();
    assert_eq!(error.code(), Some(Code::State));
    let error = service
        .client()
        .vps_destroy(&name("web"), false)
        .unwrap_err();
    assert_eq!(error.code(), Some(Code::State));
    let info = service.client().vps_get(&name("web")).unwrap();
    assert_eq!((info.state, info.boot_count), (VpsState::Running, 1));
    assert!(info.usage.unwrap().memory_bytes > 0);

    let begin = Instant::now();
    let info = service
        .client()
        .vps_stop(&name("web"), Duration::from_secs(10))
        .unwrap();
    assert_eq!(info.state, VpsState::Stopped);
    println!(
        "stopped after {:?} by {:?}",
        begin.elapsed(),
        info.last_exit
    );
    service.client().vps_destroy(&name("web"), false).unwrap();
    let error = service.client().vps_get(&name("web")).unwrap_err();
    assert_eq!(error.code(), Some(Code::NotFound));
    eventually("the removal of its files", || {
        fs::read_dir(service.directory.path().join("state/vps"))
            .unwrap()
            .count()
            == 0
    });
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn a_reboot_comes_back_a_halt_stays_down_and_neighbours_go_on() {
    let service = Service::start();
    let mut events = service.client().subscribe(0);
    service.up(spec("web"));
    service.up(spec("db"));
    let before = service.client().vps_get(&name("db")).unwrap();
    // The session dies with the VPS.
    let got = service.sh("web", "reboot -f; sleep 100");
    assert!(
        matches!(got.exit, Exit::Signal(9) | Exit::Code(_)),
        "{:?}",
        got.exit
    );
    eventually("the return of web", || {
        let info = service.client().vps_get(&name("web")).unwrap();
        info.state == VpsState::Running && info.boot_count == 2
    });
    assert_eq!(service.sh("web", "echo back").stdout, b"back\n");
    let info = service.client().vps_get(&name("web")).unwrap();
    assert_eq!(info.last_exit, Some(Exit::Reboot));

    service.sh("web", "poweroff -f; sleep 100");
    eventually("the halt of web", || {
        service.client().vps_get(&name("web")).unwrap().state == VpsState::Stopped
    });
    let info = service.client().vps_get(&name("web")).unwrap();
    assert_eq!((info.last_exit, info.boot_count), (Some(Exit::Halt), 2));

    let after = service.client().vps_get(&name("db")).unwrap();
    assert_eq!(
        (before.init_pid, before.boot_count),
        (after.init_pid, after.boot_count)
    );
    assert!(after.uptime_ms >= before.uptime_ms);

    let mut seen = Vec::new();
    while seen.last() != Some(&EventKind::Ended(Exit::Halt)) {
        let event = events.next(Some(LONG)).unwrap();
        if event.name == Some(name("web")) {
            seen.push(event.kind);
        }
    }
    assert_eq!(
        seen,
        [
            EventKind::Created,
            EventKind::Started,
            EventKind::Rebooted,
            EventKind::Ended(Exit::Halt)
        ]
    );
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn a_reboot_storm_ends_in_failure() {
    let service = Service::start();
    let mut storm = spec("storm");
    storm.init = Init::Command(
        ["sh", "-c", "sleep 0.2; reboot -f"]
            .map(Into::into)
            .to_vec(),
    );
    service.up(storm);
    eventually("the failure", || {
        service.client().vps_get(&name("storm")).unwrap().state == VpsState::Failed
    });
    let info = service.client().vps_get(&name("storm")).unwrap();
    assert_eq!(info.boot_count, 6);
    assert!(info.failure.unwrap().contains("rebooted more than"));
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn a_stuck_client_does_not_hold_a_reboot_up() {
    let service = Service::start();
    service.up(spec("web"));
    let mut stuck = service.client().exec(in_vps("web", "yes"));
    stuck.started(LONG).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    service.sh("web", "reboot -f; sleep 100");
    eventually("the return of web", || {
        let info = service.client().vps_get(&name("web")).unwrap();
        info.state == VpsState::Running && info.boot_count == 2
    });
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn runs_pass_streams_and_codes_and_go_with_their_client() {
    let service = Service::start();
    let run = |init: &[&str]| Run {
        spec: VpsSpec {
            init: Init::Command(init.iter().map(ToString::to_string).collect()),
            ..spec("run-one")
        },
        env: vec!["GREETING=hello".into()],
        terminal: None,
    };
    let script = ["sh", "-c", "cat; echo $GREETING >&2; exit 7"];
    let got = service
        .client()
        .run(run(&script))
        .capture(b"input", LONG)
        .unwrap();
    assert_eq!(got.exit, Exit::Code(7));
    assert_eq!(
        (&got.stdout[..], &got.stderr[..]),
        (&b"input"[..], &b"hello\n"[..])
    );
    assert!(service.client().vps_list().unwrap().is_empty());

    let error = service
        .client()
        .run(run(&["no-such"]))
        .capture(b"", LONG)
        .unwrap_err();
    assert_eq!(error.code(), Some(Code::CommandNotFound), "{error}");
    assert!(service.client().vps_list().unwrap().is_empty());

    let mut session = service.client().run(run(&["sleep", "1000"]));
    session.started(LONG).unwrap();
    assert_eq!(service.client().vps_list().unwrap().len(), 1);
    drop(session);
    eventually("the end of the run", || {
        service.client().vps_list().unwrap().is_empty()
    });

    let mut on_terminal = run(&["sh", "-c", "tty; read x; echo got $x; exit 4"]);
    on_terminal.terminal = Some(Terminal {
        rows: 20,
        columns: 60,
    });
    let mut session = service.client().run(on_terminal);
    read_until(&mut session, "/dev/");
    session.send_stdin(b"word\n");
    read_until(&mut session, "got word");
    loop {
        if let Message::Exited(exit) = session.next(Some(LONG)).unwrap() {
            assert_eq!(exit, Exit::Code(4));
            break;
        }
    }
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn a_console_shows_what_was_and_takes_input() {
    let service = Service::start();
    let mut shell = spec("web");
    shell.init = Init::Command(
        ["sh", "-c", "echo booted; exec sh"]
            .map(Into::into)
            .to_vec(),
    );
    service.up(shell);
    std::thread::sleep(Duration::from_millis(300));
    let mut console = service.client().console(&name("web"));
    read_until(&mut console, "booted");
    console.send_stdin(b"echo typed-$((6*7))\n");
    read_until(&mut console, "typed-42");
    let mut second = service.client().console(&name("web"));
    read_until(&mut second, "typed-42");
    service.client().vps_destroy(&name("web"), true).unwrap();
    loop {
        match second.next(Some(LONG)) {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.code(), Some(Code::NotFound), "{error}");
                break;
            }
        }
    }
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn an_agent_that_was_killed_is_cleaned_up_after() {
    let mut service = Service::start();
    let mut kept = spec("web");
    kept.autostart = true;
    service.up(kept);
    let mut session = service.client().run(Run {
        spec: spec("run-one"),
        env: Vec::new(),
        terminal: None,
    });
    session.started(LONG).unwrap();
    let pid = service
        .client()
        .vps_get(&name("web"))
        .unwrap()
        .init_pid
        .unwrap();
    service.child.kill().unwrap();
    service.child.wait().unwrap();
    drop(session);

    let directory = std::mem::replace(&mut service.directory, tempfile::tempdir().unwrap());
    let service = Service::start_in(directory);
    let all = service.client().vps_list().unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].state, all[0].boot_count), (VpsState::Running, 2));
    // It dies with its agent, but not in the same instant.
    eventually("the end of the old init", || {
        !PathBuf::from(format!("/proc/{pid}")).exists()
    });
    assert_eq!(service.sh("web", "echo again").stdout, b"again\n");
    eventually("the removal of leftovers", || {
        let entries = fs::read_dir(service.directory.path().join("state/vps")).unwrap();
        // The directory and the definition of web.
        entries.count() == 2
    });
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn restart_and_forced_destruction() {
    let service = Service::start();
    service.up(spec("web"));
    let info = service
        .client()
        .vps_restart(&name("web"), Duration::ZERO)
        .unwrap();
    assert_eq!((info.state, info.boot_count), (VpsState::Running, 2));
    service.client().vps_destroy(&name("web"), true).unwrap();
    assert!(service.client().vps_list().unwrap().is_empty());
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn what_the_host_tells_a_vps_is_not_its_own_to_change() {
    let service = Service::start();
    service.up(spec("web"));
    let script = "cat /run/host/container-manager; \
                  echo x > /run/host/container-manager || echo refused; \
                  mount -o remount,bind,rw /run/host; \
                  echo x > /run/host/container-manager || echo refused; \
                  rm -f /run/host/container-uuid; touch /run/host/new; ls /run/host";
    let got = service.sh("web", script);
    let text = String::from_utf8(got.stdout).unwrap();
    assert_eq!(
        text,
        "insula\nrefused\nrefused\nboot-id\ncontainer-manager\ncontainer-uuid\nproc\n"
    );
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn a_kill_for_want_of_memory_is_told_of_while_the_vps_goes_on() {
    let service = Service::start();
    let mut events = service.client().subscribe(0);
    let mut small = spec("web");
    small.limits.memory_bytes = Some(16 << 20);
    service.up(small);
    let got = service.sh("web", "tail /dev/zero; echo $?");
    assert_eq!(got.stdout, b"137\n");
    while events.next(Some(LONG)).unwrap().kind != EventKind::OutOfMemory {}
    let info = service.client().vps_get(&name("web")).unwrap();
    assert_eq!((info.state, info.boot_count), (VpsState::Running, 1));
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn busybox_powers_off_when_asked_and_is_not_waited_for_in_vain() {
    let service = Service::start();
    let mut template = spec("web");
    template.init = Init::Template;
    service.up(template);
    service.sh(
        "web",
        "mkdir -p /etc; echo '::shutdown:/bin/touch /ended' > /etc/inittab; kill -HUP 1",
    );
    let before = Instant::now();
    let grace = Duration::from_secs(20);
    let info = service.client().vps_stop(&name("web"), grace).unwrap();
    assert_eq!(
        (info.state, info.last_exit),
        (VpsState::Stopped, Some(Exit::Halt))
    );
    assert!(before.elapsed() < grace);
    service.client().vps_start(&name("web")).unwrap();
    assert_eq!(service.sh("web", "ls /ended").stdout, b"/ended\n");
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn devices_other_than_its_own_stay_shut_even_to_the_machines_root() {
    let service = Service::start();
    service.up(spec("web"));
    let info = service.client().vps_get(&name("web")).unwrap();
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", info.init_pid.unwrap())).unwrap();
    let cgroup = format!("/sys/fs/cgroup{}", cgroup.trim().trim_start_matches("0::"));
    // A process that has all rights but the VPS's cgroup.
    let script = format!(
        "echo $$ > {cgroup}/cgroup.procs; echo x > /dev/null && echo null; \
         true < /dev/kmsg && echo kmsg; mknod /tmp/node c 1 11 && echo made; \
         true < /tmp/node && echo node; rm -f /tmp/node"
    );
    let shell = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8(shell.stdout).unwrap(), "null\nmade\n");
}

/// The lines that `web` has written, one every 10 ms.
fn beats(service: &Service) -> usize {
    let path = service.directory.path().join("state/vps/web/upper/beats");
    fs::read_to_string(path).unwrap_or_default().len()
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn a_suspended_service_holds_its_vpss_and_they_go_on_where_they_were() {
    let service = Service::start();
    let mut beating = spec("web");
    // In a cgroup below its own, too.
    let script = "mkdir /sys/fs/cgroup/deep && echo $$ > /sys/fs/cgroup/deep/cgroup.procs; \
                  while :; do echo >> /beats; usleep 10000; done";
    beating.init = Init::Command(["sh", "-c", script].map(str::to_owned).to_vec());
    service.up(beating);
    eventually("a beat", || beats(&service) > 0);

    let mut events = service.client().subscribe(0);
    service.client().suspend().unwrap();
    assert_eq!(service.client().info().unwrap().suspended, Some(true));
    let held = beats(&service);
    // As long as many beats.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(beats(&service), held);
    for refused in [
        service.client().vps_create(spec("db")).unwrap_err(),
        service
            .client()
            .exec(in_vps("web", "true"))
            .capture(b"", LONG)
            .unwrap_err(),
    ] {
        assert_eq!(refused.code(), Some(Code::State), "{refused}");
    }

    service.client().resume().unwrap();
    assert_eq!(service.client().info().unwrap().suspended, Some(false));
    eventually("more beats", || beats(&service) > held);
    let info = service.client().vps_get(&name("web")).unwrap();
    assert_eq!((info.state, info.boot_count), (VpsState::Running, 1));
    let mut seen = Vec::new();
    while seen.last() != Some(&EventKind::Resumed) {
        seen.push(events.next(Some(LONG)).unwrap().kind);
    }
    assert_eq!(
        seen[seen.len() - 2..],
        [EventKind::Suspended, EventKind::Resumed]
    );
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn what_is_suspended_can_be_killed_and_restarts_afterwards() {
    let service = Service::start();
    for vps in ["web", "db", "mail"] {
        service.up(spec(vps));
    }
    service.client().suspend().unwrap();
    let info = service
        .client()
        .vps_stop(&name("web"), Duration::ZERO)
        .unwrap();
    assert_eq!(info.state, VpsState::Stopped);
    let refused = service.client().vps_start(&name("web")).unwrap_err();
    assert_eq!(refused.code(), Some(Code::State));
    service.client().vps_destroy(&name("mail"), true).unwrap();

    // Killed now, and back when everything goes on.
    let mut client = service.client();
    let restart =
        std::thread::spawn(move || client.vps_restart(&name("db"), Duration::ZERO).unwrap());
    eventually("the end of db", || {
        let info = service.client().vps_get(&name("db")).unwrap();
        info.state == VpsState::Stopped && info.last_exit.is_some()
    });
    service.client().resume().unwrap();
    let info = restart.join().unwrap();
    assert_eq!((info.state, info.boot_count), (VpsState::Running, 2));
    assert_eq!(service.sh("db", "echo again").stdout, b"again\n");
    service.client().vps_start(&name("web")).unwrap();
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn a_suspension_that_nobody_ends_ends() {
    let service = Service::start();
    service.up(spec("web"));
    service.client().suspend().unwrap();
    eventually("the resumption", || {
        service.client().info().unwrap().suspended == Some(false)
    });
    assert_eq!(service.sh("web", "echo on").stdout, b"on\n");
}

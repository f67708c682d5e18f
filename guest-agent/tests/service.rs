//! The agent as an unprivileged service on this machine: sessions outside of
//! VPSs, over a Unix socket and over TCP.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(all(feature = "agent", feature = "client"))]

mod support;

use std::io::Read;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use guest_agent::client::{Client, ClientError, Endpoint};
use guest_agent::protocol::{Code, Exit, Message, Name, Resize, Signal, Terminal, VpsNamed};
use support::{AGENT, LONG, Service, eventually, exec, read_until};

#[test]
fn output_error_and_exit_code_arrive() {
    let service = Service::start();
    let got = service.capture(&["sh", "-c", "echo out; echo err >&2; exit 7"], b"");
    assert_eq!(got.exit, Exit::Code(7));
    assert_eq!(
        (&got.stdout[..], &got.stderr[..]),
        (&b"out\n"[..], &b"err\n"[..])
    );
    let got = service.capture(&["sh", "-c", "kill -9 $$"], b"");
    assert_eq!(got.exit, Exit::Signal(9));
}

#[test]
fn large_input_and_output_pass_whole() {
    let service = Service::start();
    let input: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let got = service.capture(&["cat"], &input);
    assert_eq!(got.exit, Exit::Code(0));
    assert!(
        got.stdout == input,
        "{} bytes of {}",
        got.stdout.len(),
        input.len()
    );
}

#[test]
fn input_that_nobody_reads_does_not_hang() {
    let service = Service::start();
    let got = service.capture(&["true"], &vec![0; 2_000_000]);
    assert_eq!(got.exit, Exit::Code(0));
}

#[test]
fn programs_that_cannot_be_executed_are_told_apart() {
    let service = Service::start();
    std::fs::write(service.path("plain"), "text").unwrap();
    for (argv, code, shell) in [
        ("no-such-program", Code::CommandNotFound, 127),
        ("/no/such/program", Code::CommandNotFound, 127),
        (
            service.path("plain").to_str().unwrap(),
            Code::CommandNotExecutable,
            126,
        ),
        ("/", Code::CommandNotExecutable, 126),
    ] {
        let error = service.exec(&[argv]).capture(b"", LONG).unwrap_err();
        assert_eq!(
            (error.code(), error.shell_code()),
            (Some(code), Some(shell)),
            "{error}"
        );
        assert!(error.to_string().contains(argv), "{error}");
    }
    let error = service.exec(&[]).capture(b"", LONG).unwrap_err();
    assert_eq!(error.code(), Some(Code::Invalid));
}

#[test]
fn environment_and_directory_are_set() {
    let service = Service::start();
    let mut request = exec(&[
        "sh",
        "-c",
        "pwd; echo $GREETING; echo ${HOME:+home}; ls /proc/self/fd",
    ]);
    request.env = vec!["GREETING=hello there".into()];
    request.cwd = Some("/usr".into());
    let got = service.client().exec(request).capture(b"", LONG).unwrap();
    let text = String::from_utf8(got.stdout).unwrap();
    // `ls` itself has the directory open as 3.
    assert_eq!(text, "/usr\nhello there\nhome\n0\n1\n2\n3\n");

    let mut request = exec(&["true"]);
    request.cwd = Some("/no/such".into());
    let error = service
        .client()
        .exec(request)
        .capture(b"", LONG)
        .unwrap_err();
    assert!(error.to_string().contains("/no/such"), "{error}");
    let mut request = exec(&["true"]);
    request.user = Some("no-such-user".into());
    let error = service
        .client()
        .exec(request)
        .capture(b"", LONG)
        .unwrap_err();
    assert!(error.to_string().contains("no-such-user"), "{error}");
}

#[test]
fn signals_reach_the_process_even_behind_unread_input() {
    let service = Service::start();
    let mut session = service.exec(&["sleep", "1000"]);
    session.started(LONG).unwrap();
    while session.window() > 0 {
        session.send_stdin(&[0; 8192]);
    }
    session.send(Message::Signal(Signal {
        signal: libc::SIGTERM as u8,
    }));
    loop {
        if let Message::Exited(exit) = session.next(Some(LONG)).unwrap() {
            assert_eq!(exit, Exit::Signal(libc::SIGTERM as u8));
            return;
        }
    }
}

#[test]
fn a_client_that_goes_hangs_its_process_up() {
    let service = Service::start();
    let mut session = service.exec(&["sleep", "1000"]);
    let pid = session.started(LONG).unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    drop(session);
    eventually("the end of the process", || {
        !Path::new(&format!("/proc/{pid}")).exists()
    });
}

#[test]
fn a_terminal_has_a_size_echoes_and_ends() {
    let service = Service::start();
    let mut request = exec(&[
        "sh",
        "-c",
        "stty size; read x; stty size; echo got $x; exit 3",
    ]);
    request.terminal = Some(Terminal {
        rows: 33,
        columns: 77,
    });
    let mut session = service.client().exec(request);
    read_until(&mut session, "33 77");
    let terminal = Terminal {
        rows: 44,
        columns: 99,
    };
    session.send(Message::Resize(Resize { terminal }));
    session.send_stdin(b"word\n");
    let output = read_until(&mut session, "got word\r\n");
    assert!(output.contains("44 99"), "{output:?}");
    loop {
        if let Message::Exited(exit) = session.next(Some(LONG)).unwrap() {
            assert_eq!(exit, Exit::Code(3));
            break;
        }
    }
}

#[test]
fn the_end_comes_although_a_child_keeps_the_output_open() {
    let service = Service::start();
    let begin = Instant::now();
    let got = service.capture(&["sh", "-c", "sleep 5 & echo done"], b"");
    assert_eq!((got.exit, &got.stdout[..]), (Exit::Code(0), &b"done\n"[..]));
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn many_sessions_at_once_and_one_that_does_not_read() {
    let service = Service::start();
    let mut stuck = service.exec(&["sh", "-c", "yes"]);
    stuck.started(LONG).unwrap();
    let sessions: Vec<_> = (0..60)
        .map(|n| {
            let mut session =
                service.exec(&["sh", "-c", &format!("sleep 0.1; echo {n}; exit {n}")]);
            session.started(LONG).unwrap();
            session
        })
        .collect();
    for (session, n) in sessions.into_iter().zip(0u8..) {
        let got = session.capture(b"", LONG).unwrap();
        assert_eq!(
            (got.exit, got.stdout),
            (Exit::Code(n), format!("{n}\n").into_bytes())
        );
    }
    // The service holds no more of the stuck one's output than it may.
    let info = service.client().info().unwrap();
    assert!(
        info.agent_resident_bytes < 32 << 20,
        "{}",
        info.agent_resident_bytes
    );
}

#[test]
fn output_is_not_cut_for_a_slow_reader() {
    let service = Service::start();
    let mut session = service.exec(&["sh", "-c", "head -c 5000000 /dev/zero"]);
    session.started(LONG).unwrap();
    std::thread::sleep(Duration::from_millis(600));
    let got = session.capture(b"", LONG).unwrap();
    assert_eq!((got.exit, got.stdout.len()), (Exit::Code(0), 5_000_000));
}

#[test]
fn files_are_put_and_got() {
    let service = Service::start();
    let data: Vec<u8> = (0..5_000_000u32).map(|n| (n % 253) as u8).collect();
    let target = service.path("deep/er/file");
    let sent = service
        .client()
        .put(&mut &data[..], target.to_str().unwrap(), 0o755)
        .unwrap();
    assert_eq!(sent, 5_000_000);
    assert!(std::fs::read(&target).unwrap() == data);
    let copy = service.path("copy");
    assert_eq!(
        service
            .client()
            .get_file(target.to_str().unwrap(), &copy)
            .unwrap(),
        5_000_000
    );
    assert!(std::fs::read(&copy).unwrap() == data);

    let error = service
        .client()
        .get("/no/such/file", &mut Vec::new())
        .unwrap_err();
    assert_eq!(error.code(), Some(Code::NotFound));
    let error = service
        .client()
        .put(&mut &data[..], "/proc/file", 0o644)
        .unwrap_err();
    assert!(error.to_string().contains("/proc/file"), "{error}");
}

#[test]
fn a_broken_upload_leaves_nothing() {
    let service = Service::start();
    struct Torn(usize);
    impl Read for Torn {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0 += 1;
            if self.0 > 3 {
                Err(std::io::Error::other("torn"))
            } else {
                Ok(buffer.len())
            }
        }
    }
    let directory = service.path("uploads");
    let target = directory.join("file");
    let error = service
        .client()
        .put(&mut Torn(0), target.to_str().unwrap(), 0o644)
        .unwrap_err();
    assert!(matches!(error, ClientError::Local { .. }), "{error}");
    eventually("the removal of the half file", || {
        std::fs::read_dir(&directory).is_ok_and(|entries| entries.count() == 0)
    });
}

#[test]
fn garbage_ends_its_connection_and_nothing_else() {
    use std::io::Write;
    let service = Service::start();
    service.client().ping().unwrap();
    for garbage in [
        &b"GET / HTTP/1.0\r\n\r\n"[..],
        &[0xff; 64],
        &[5, 0, 0, 0, 99, 0, 0, 0, 0],
    ] {
        let mut raw = UnixStream::connect(service.path("agent.sock")).unwrap();
        raw.write_all(garbage).unwrap();
        raw.set_read_timeout(Some(LONG)).unwrap();
        // Closed without an answer: end of file, or a reset.
        assert!(!matches!(raw.read(&mut [0; 16]), Ok(1..)));
    }
    service.client().ping().unwrap();
}

#[test]
fn tcp_wants_the_token() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let service = Service::start_with(|directory| {
        let token = directory.join("token");
        std::fs::write(&token, "sesame\n").unwrap();
        vec![
            format!("--listen=tcp:127.0.0.1:{port}"),
            format!("--token-file={}", token.display()),
        ]
    });
    service.client().ping().unwrap();
    let endpoint = |token: &[u8]| Endpoint::Tcp {
        addr: ([127, 0, 0, 1], port).into(),
        token: token.into(),
    };
    for wrong in [&b""[..], b"sesam", b"sesame\n"] {
        let error = Client::connect(&endpoint(wrong)).unwrap_err();
        assert_eq!(error.code(), Some(Code::Denied), "{error}");
    }
    let got = Client::connect(&endpoint(b"sesame"))
        .unwrap()
        .exec(exec(&["echo", "hi"]));
    assert_eq!(got.capture(b"", LONG).unwrap().stdout, b"hi\n");
}

#[test]
fn a_service_without_templates_says_so_and_ends_when_told() {
    let mut service = Service::start();
    let error = service
        .client()
        .vps_get(&Name::new("web").unwrap())
        .unwrap_err();
    assert_eq!(error.code(), Some(Code::Unsupported), "{error}");
    assert!(service.client().vps_list().unwrap().is_empty());
    let request = Message::VpsStart(VpsNamed {
        name: Name::new("web").unwrap(),
    });
    assert!(service.client().request(request).is_err());
    service.client().power_off().unwrap();
    assert!(service.child.wait().unwrap().success());
    assert!(!service.path("agent.sock").exists());
}

#[test]
fn a_second_service_on_a_socket_is_refused_and_a_dead_ones_is_replaced() {
    let mut service = Service::start();
    service.client().ping().unwrap();
    let second = Command::new(AGENT)
        .args(["service", "--socket"])
        .arg(service.path("agent.sock"))
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("serves there already"));
    service.child.kill().unwrap();
    service.child.wait().unwrap();
    assert!(service.path("agent.sock").exists());
    service.child = Command::new(AGENT)
        .args(["service", "--socket"])
        .arg(service.path("agent.sock"))
        .spawn()
        .unwrap();
    service.client().ping().unwrap();
}

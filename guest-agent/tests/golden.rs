//! The bytes of every message: what is in `tests/golden/v1.txt` must decode
//! for ever, since guests outlive the programs that started them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write;

use guest_agent::protocol::{
    BootConfig, Clock, Code, Console, Decoder, Disk, DiskRole, Event, EventKind, Exec, Exit,
    Failure, Frame, Get, Goodbye, GoodbyeReason, Hello, Info, Init, Limits, Message, Name, Put,
    Resize, RestartPolicy, Restored, Resumed, Run, Signal, Started, StdinCredit, Subscribe, Target,
    Terminal, Usage, VpsDestroy, VpsInfo, VpsNamed, VpsSpec, VpsState, VpsStop,
};
use proptest::prelude::*;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn spec() -> VpsSpec {
    VpsSpec {
        name: name("web"),
        template: name("busybox"),
        hostname: Some(name("www")),
        init: Init::Command(vec!["sh".into(), "-c".into(), "true".into()]),
        limits: Limits {
            memory_bytes: Some(1 << 28),
            cpu_milli: Some(1500),
            cpu_weight: None,
            pids: Some(100),
        },
        autostart: true,
        restart: RestartPolicy::AllowReboot,
    }
}

fn info() -> VpsInfo {
    VpsInfo {
        spec: VpsSpec {
            hostname: None,
            init: Init::Template,
            ..spec()
        },
        state: VpsState::Running,
        boot_count: 3,
        init_pid: Some(77),
        uptime_ms: Some(123_456),
        last_exit: Some(Exit::Reboot),
        failure: None,
        usage: Some(Usage {
            memory_bytes: 1,
            memory_peak_bytes: 2,
            cpu_us: 3,
            pids: 4,
            oom_kills: 5,
            pids_refused: 6,
        }),
    }
}

fn messages() -> Vec<(&'static str, Message)> {
    let named = || VpsNamed { name: name("web") };
    let terminal = Terminal {
        rows: 24,
        columns: 80,
    };
    let event = |kind| {
        Message::Event(Event {
            sequence: 9,
            at_ms: 1000,
            name: Some(name("web")),
            kind,
        })
    };
    let machine_event = |kind| {
        Message::Event(Event {
            sequence: 10,
            at_ms: 2000,
            name: None,
            kind,
        })
    };
    vec![
        (
            "hello",
            Message::Hello(Hello {
                major: 1,
                minor: 0,
                build: "insula 0.1.0".into(),
                secret: vec![1, 2, 3],
            }),
        ),
        (
            "goodbye",
            Message::Goodbye(Goodbye {
                reason: GoodbyeReason::Requested,
            }),
        ),
        (
            "goodbye-failed",
            Message::Goodbye(Goodbye {
                reason: GoodbyeReason::Failed("why".into()),
            }),
        ),
        (
            "error",
            Message::Error(Failure {
                code: Code::NotFound,
                message: "there is no VPS web".into(),
                errno: Some(2),
            }),
        ),
        ("vps-create", Message::VpsCreate(spec())),
        ("vps-start", Message::VpsStart(named())),
        (
            "vps-stop",
            Message::VpsStop(VpsStop {
                name: name("web"),
                timeout_ms: 5000,
                restart: true,
            }),
        ),
        (
            "vps-destroy",
            Message::VpsDestroy(VpsDestroy {
                name: name("web"),
                force: false,
            }),
        ),
        ("vps-get", Message::VpsGet(named())),
        (
            "exec",
            Message::Exec(Exec {
                target: Target::Vps(name("web")),
                argv: vec!["id".into()],
                env: vec!["A=b".into()],
                cwd: Some("/tmp".into()),
                user: Some("33:33".into()),
                terminal: Some(terminal),
            }),
        ),
        (
            "exec-machine",
            Message::Exec(Exec {
                target: Target::Machine,
                argv: vec!["id".into()],
                env: Vec::new(),
                cwd: None,
                user: None,
                terminal: None,
            }),
        ),
        (
            "run",
            Message::Run(Run {
                spec: spec(),
                env: Vec::new(),
                terminal: None,
            }),
        ),
        ("console", Message::Console(Console { name: name("web") })),
        (
            "put",
            Message::Put(Put {
                path: "/etc/motd".into(),
                mode: 0o644,
            }),
        ),
        (
            "get",
            Message::Get(Get {
                path: "/etc/motd".into(),
            }),
        ),
        ("subscribe", Message::Subscribe(Subscribe { since: 7 })),
        ("resize", Message::Resize(Resize { terminal })),
        ("signal", Message::Signal(Signal { signal: 15 })),
        ("started", Message::Started(Started { pid: 4242 })),
        ("exited-code", Message::Exited(Exit::Code(7))),
        ("exited-signal", Message::Exited(Exit::Signal(9))),
        ("exited-reboot", Message::Exited(Exit::Reboot)),
        ("exited-halt", Message::Exited(Exit::Halt)),
        ("event-created", event(EventKind::Created)),
        ("event-started", event(EventKind::Started)),
        ("event-rebooted", event(EventKind::Rebooted)),
        ("event-ended", event(EventKind::Ended(Exit::Halt))),
        ("event-failed", event(EventKind::Failed("why".into()))),
        ("event-destroyed", event(EventKind::Destroyed)),
        ("event-out-of-memory", event(EventKind::OutOfMemory)),
        (
            "stdin-credit",
            Message::StdinCredit(StdinCredit { bytes: 65536 }),
        ),
        (
            "info",
            Message::Info(Info {
                kernel: "6.12.0".into(),
                cpus: 2,
                memory_bytes: 128 << 20,
                memory_available_bytes: 64 << 20,
                uptime_ms: 1000,
                agent_resident_bytes: 1 << 20,
                templates: vec![name("busybox")],
                vps_count: 1,
                generation: None,
                suspended: None,
            }),
        ),
        ("vps", Message::Vps(info())),
        ("vps-all", Message::VpsAll(vec![info(), info()])),
        ("stdin", Message::Stdin(b"in".to_vec())),
        ("stdout", Message::Stdout(b"out".to_vec())),
        ("stderr", Message::Stderr(Vec::new())),
        ("done", Message::Done),
        ("ping", Message::Ping),
        ("get-info", Message::GetInfo),
        ("power-off", Message::PowerOff),
        ("vps-list", Message::VpsList),
        ("stdin-eof", Message::StdinEof),
        ("suspend", Message::Suspend),
        ("resume", Message::Resume),
        (
            "restored",
            Message::Restored(Restored {
                generation: [1; 16],
                entropy: [2; 64],
                wall_clock_ns: 1_700_000_000_000_000_000,
                hostname: name("clone-7"),
                nonce: [3; 16],
            }),
        ),
        (
            "resumed",
            Message::Resumed(Resumed {
                generation: [1; 16],
            }),
        ),
        (
            "info-restored",
            Message::Info(Info {
                kernel: "6.12.0".into(),
                cpus: 1,
                memory_bytes: 128 << 20,
                memory_available_bytes: 64 << 20,
                uptime_ms: 1000,
                agent_resident_bytes: 1 << 20,
                templates: Vec::new(),
                vps_count: 0,
                generation: Some([1; 16]),
                suspended: Some(true),
            }),
        ),
        ("event-suspended", machine_event(EventKind::Suspended)),
        ("event-resumed", machine_event(EventKind::Resumed)),
        (
            "event-restored",
            machine_event(EventKind::Restored([1; 16])),
        ),
        (
            "clock",
            Message::Clock(Clock {
                wall_clock_ns: 1_700_000_000_000_000_000,
            }),
        ),
    ]
}

fn boot_config() -> BootConfig {
    BootConfig {
        nonce: [0x5a; 16],
        hostname: name("guest"),
        disks: vec![
            Disk {
                role: DiskRole::Template(name("busybox")),
            },
            Disk {
                role: DiskRole::Data,
            },
        ],
        wall_clock_ns: 1_700_000_000_000_000_000,
        machine_root: Some(name("busybox")),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// To make the file anew after an addition: `INSULA_GOLDEN=write cargo test golden`.
/// Lines that were there must stay as they are.
#[test]
fn golden_bytes_of_every_message() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1.txt");
    let mut text = String::new();
    for (label, message) in messages() {
        writeln!(
            text,
            "{label} {}",
            hex(&Frame::new(0x0102_0304, message).to_bytes())
        )
        .unwrap();
    }
    writeln!(
        text,
        "boot-config {}",
        hex(&minicbor::to_vec(boot_config()).unwrap())
    )
    .unwrap();
    if std::env::var_os("INSULA_GOLDEN").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    for (ours, theirs) in text.lines().zip(golden.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(text.lines().count(), golden.lines().count());

    let expected = messages();
    for (line, (label, message)) in golden.lines().zip(expected) {
        let bytes = unhex(line.split_once(' ').unwrap().1);
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        let frame = decoder.next_frame().unwrap().unwrap();
        assert_eq!((frame.id, frame.message), (0x0102_0304, message), "{label}");
        assert_eq!(decoder.pending(), 0);
    }
    let last = golden.lines().last().unwrap().split_once(' ').unwrap().1;
    assert_eq!(
        minicbor::decode::<BootConfig>(&unhex(last)).unwrap(),
        boot_config()
    );
}

#[test]
fn unknown_fields_are_skipped_and_unknown_kinds_are_named() {
    // {0: "/x", 99: [1, 2]}, as a later version might send it.
    let body = [0xa2, 0x00, 0x62, b'/', b'x', 0x18, 99, 0x82, 1, 2];
    assert_eq!(
        Message::decode(36, &body).unwrap(),
        Message::Get(Get { path: "/x".into() })
    );
    assert!(
        Message::decode(255, &[])
            .unwrap_err()
            .to_string()
            .contains("255")
    );
}

proptest! {
    #[test]
    fn frames_come_out_however_the_stream_is_cut(
        picks in prop::collection::vec(0usize..1000, 1..12),
        cuts in prop::collection::vec(1usize..40, 1..60),
    ) {
        let all = messages();
        let sent: Vec<Frame> = picks
            .iter()
            .zip(1..)
            .map(|(pick, id)| Frame::new(id, all[pick % all.len()].1.clone()))
            .collect();
        let mut stream = Vec::new();
        for frame in &sent {
            frame.encode(&mut stream);
        }
        let mut decoder = Decoder::new();
        let mut got = Vec::new();
        let mut rest = &stream[..];
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            decoder.push(piece);
            rest = behind;
            while let Some(frame) = decoder.next_frame().unwrap() {
                got.push(frame);
            }
        }
        prop_assert_eq!(got, sent);
        prop_assert_eq!(decoder.pending(), 0);
    }

    #[test]
    fn garbage_never_panics_and_never_loops(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        // Every answer but "more" and a bad length takes at least a header.
        for _ in 0..=bytes.len() / 9 {
            match decoder.next_frame() {
                Ok(None) | Err((_, guest_agent::protocol::FrameError::Length(_))) => return Ok(()),
                Ok(Some(_)) | Err(_) => {}
            }
        }
        prop_assert!(decoder.pending() < 9);
    }

    #[test]
    fn garbage_bodies_of_every_kind_are_refused_or_decoded(
        kind in any::<u8>(),
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        if let Ok(message) = Message::decode(kind, &body) {
            // What decodes, encodes, and decodes to the same.
            let bytes = Frame::new(1, message.clone()).to_bytes();
            prop_assert_eq!(Message::decode(kind, &bytes[9..]).unwrap(), message);
        }
    }

    #[test]
    fn a_flipped_bit_never_panics(pick in 0usize..1000, bit in 0usize..20_000) {
        let all = messages();
        let mut bytes = Frame::new(1, all[pick % all.len()].1.clone()).to_bytes();
        let at = bit % (bytes.len() * 8);
        bytes[at / 8] ^= 1 << (at % 8);
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        let _ = decoder.next_frame();
    }
}

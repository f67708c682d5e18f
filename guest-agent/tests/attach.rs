//! A session on the caller's own streams and terminal.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(all(feature = "agent", feature = "client"))]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use guest_agent::client::{Attach, Outcome};
use guest_agent::protocol::{Exit, Terminal};
use rustix::pipe::pipe;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use support::{Service, exec};

fn read_all(fd: OwnedFd) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::from(fd).read_to_end(&mut bytes).unwrap();
    bytes
}

/// One test: only one attachment at a time can route a process's signals.
#[test]
fn streams_signals_and_terminals_are_passed_on() {
    let service = Service::start();

    // Pipes: input to its end, both outputs, the exit code.
    let (stdin, stdin_far) = pipe().unwrap();
    let (stdout, stdout_far) = pipe().unwrap();
    let (stderr, stderr_far) = pipe().unwrap();
    File::from(stdin_far).write_all(b"some input").unwrap();
    let outcome = service
        .exec(&["sh", "-c", "cat; echo err >&2; exit 5"])
        .attach(&Attach {
            stdin: Some(stdin.as_fd()),
            stdout: stdout_far.as_fd(),
            stderr: stderr_far.as_fd(),
            terminal: false,
            detach: None,
        })
        .unwrap();
    drop((stdout_far, stderr_far));
    assert_eq!(outcome, Outcome::Exited(Exit::Code(5)));
    assert_eq!(
        (read_all(stdout), read_all(stderr)),
        (b"some input".to_vec(), b"err\n".to_vec())
    );

    // A reader that goes away.
    let (stdout, stdout_far) = pipe().unwrap();
    drop(stdout);
    let how = Attach {
        stdin: None,
        stdout: stdout_far.as_fd(),
        stderr: stdout_far.as_fd(),
        terminal: false,
        detach: None,
    };
    assert_eq!(
        service.exec(&["yes"]).attach(&how).unwrap(),
        Outcome::OutputClosed
    );

    // A signal to this process is one to that process.
    let (_stdout, stdout_far) = pipe().unwrap();
    let mut session = service.exec(&["sleep", "1000"]);
    session.started(support::LONG).unwrap();
    let signaller = std::thread::spawn(|| {
        std::thread::sleep(std::time::Duration::from_millis(300));
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM)
    });
    let how = Attach {
        stdin: None,
        stdout: stdout_far.as_fd(),
        stderr: stdout_far.as_fd(),
        terminal: false,
        detach: None,
    };
    let outcome = session.attach(&how).unwrap();
    signaller.join().unwrap().unwrap();
    assert_eq!(outcome, Outcome::Exited(Exit::Signal(libc::SIGTERM as u8)));

    // A terminal: raw while it lasts, as before afterwards.
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    unlockpt(&master).unwrap();
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    tcsetwinsize(
        &master,
        Winsize {
            ws_row: 30,
            ws_col: 90,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )
    .unwrap();
    let size = guest_agent::client::terminal_size(slave.as_fd()).unwrap();
    assert_eq!(
        size,
        Terminal {
            rows: 30,
            columns: 90
        }
    );
    let typist = std::thread::spawn(move || {
        let mut terminal = File::from(master);
        let mut seen = String::new();
        let mut typed = false;
        let mut bytes = [0; 256];
        while !seen.contains("bye") {
            let count = terminal.read(&mut bytes).unwrap();
            seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
            if seen.contains("ready") && !typed {
                terminal.write_all(b"\x03word\n").unwrap();
                typed = true;
            }
        }
        (terminal, seen)
    });
    let script = "trap 'echo interrupted' INT; stty size; echo ready; \
                  read x || read x; echo \"got $x\"; echo bye; exit 6";
    let mut request = exec(&["bash", "-c", script]);
    request.terminal = Some(size);
    let outcome = service
        .client()
        .exec(request)
        .attach(&Attach {
            stdin: Some(slave.as_fd()),
            stdout: slave.as_fd(),
            stderr: slave.as_fd(),
            terminal: true,
            detach: None,
        })
        .unwrap();
    let (_terminal, seen) = typist.join().unwrap();
    assert_eq!(outcome, Outcome::Exited(Exit::Code(6)), "{seen:?}");
    for part in ["30 90", "interrupted", "got word"] {
        assert!(seen.contains(part), "{part}: {seen:?}");
    }
    let after = tcgetattr(&slave).unwrap();
    assert!(
        after
            .local_modes
            .contains(LocalModes::ICANON | LocalModes::ECHO)
    );
}

//! What the integration tests share.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test is a crate of its own and uses a part of it"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use guest_agent::client::{Captured, Client, Endpoint, Session};
use guest_agent::protocol::{Exec, Message, Target};

/// The program under test.
pub const AGENT: &str = env!("CARGO_BIN_EXE_insula-agent");

/// Longer than anything here should take.
pub const LONG: Duration = Duration::from_secs(20);

/// An agent that serves on a socket of its own, until dropped.
pub struct Service {
    pub child: Child,
    pub directory: tempfile::TempDir,
}

impl Service {
    pub fn start() -> Self {
        Self::start_with(|_| Vec::new())
    }

    pub fn start_with(more: impl Fn(&Path) -> Vec<String>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let child = Command::new(AGENT)
            .args(["service", "--socket"])
            .arg(directory.path().join("agent.sock"))
            .args(more(directory.path()))
            .spawn()
            .unwrap();
        Self { child, directory }
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.path("agent.sock"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn client(&self) -> Client {
        Client::connect_until(&self.endpoint(), Instant::now() + LONG).unwrap()
    }

    pub fn exec(&self, argv: &[&str]) -> Session {
        self.client().exec(exec(argv))
    }

    pub fn capture(&self, argv: &[&str], input: &[u8]) -> Captured {
        self.exec(argv).capture(input, LONG).unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request to run `argv` on the machine.
pub fn exec(argv: &[&str]) -> Exec {
    Exec {
        target: Target::Machine,
        argv: argv.iter().map(ToString::to_string).collect(),
        env: Vec::new(),
        cwd: None,
        user: None,
        terminal: None,
    }
}

/// Reads a session's messages until `enough` output has come.
pub fn read_until(session: &mut Session, enough: &str) -> String {
    let mut output = String::new();
    while !output.contains(enough) {
        if let Message::Stdout(bytes) = session.next(Some(LONG)).unwrap() {
            output.push_str(&String::from_utf8_lossy(&bytes));
        }
    }
    output
}

/// Waits until `holds`.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

//! QEMU's monitor protocol (`docs/interop/qmp-spec.txt` of QEMU): one JSON
//! object per line, in both directions.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::error::{LabError, Result};

/// How long one command may take. None that we use waits for the guest.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at something that has no event.
pub(super) const POLL: Duration = Duration::from_millis(10);
/// Lines longer than this come from no QEMU.
const MAX_LINE: u64 = 1 << 20;

/// A connection to the monitor. QEMU serves one at a time, so it is kept short.
#[derive(Debug)]
pub(super) struct Monitor {
    socket: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects, trying again until `deadline` or until `alive` says that
    /// there is nobody to wait for.
    pub(super) fn connect(
        socket: &Path,
        deadline: Instant,
        alive: impl Fn() -> bool,
    ) -> Result<Self> {
        let failed = |reason: String| LabError::Monitor {
            socket: socket.to_owned(),
            command: "connect".to_owned(),
            reason,
        };
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(e) if Instant::now() >= deadline => return Err(failed(e.to_string())),
                Err(_) if !alive() => return Err(failed("QEMU has ended".to_owned())),
                Err(_) => std::thread::sleep(POLL),
            }
        };
        let timed = stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
        timed.map_err(|e| failed(e.to_string()))?;
        let mut monitor = Self {
            socket: socket.to_owned(),
            stream: BufReader::new(stream),
        };
        monitor.receive("connect")?;
        monitor.command("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Runs a command and returns what it returns.
    pub(super) fn command(&mut self, name: &str, arguments: &Value) -> Result<Value> {
        let mut line = json!({ "execute": name, "arguments": arguments }).to_string();
        line.push('\n');
        if let Err(e) = self.stream.get_mut().write_all(line.as_bytes()) {
            return Err(self.failed(name, e.to_string()));
        }
        loop {
            let answer = self.receive(name)?;
            if let Some(result) = reply(answer) {
                return result.map_err(|reason| self.failed(name, reason));
            }
        }
    }

    /// The `status` of `query-status`: `running`, `paused`, `inmigrate`, …
    pub(super) fn run_state(&mut self) -> Result<String> {
        self.status_of("query-status")
    }

    /// The `status` of `query-migrate`: `active`, `completed`, `failed`, …
    pub(super) fn migration(&mut self) -> Result<String> {
        self.status_of("query-migrate")
    }

    fn status_of(&mut self, query: &str) -> Result<String> {
        let answer = self.command(query, &json!({}))?;
        Ok(answer["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Lets migration leave out memory that is in a file anyway.
    pub(super) fn leave_out_shared_memory(&mut self) -> Result<()> {
        let capability = json!([{ "capability": "x-ignore-shared", "state": true }]);
        self.command(
            "migrate-set-capabilities",
            &json!({ "capabilities": capability }),
        )
        .map(drop)
    }

    /// Asks QEMU to end. That it ends before it answers is fine.
    pub(super) fn quit(mut self) {
        let _ = self.command("quit", &json!({}));
    }

    fn receive(&mut self, command: &str) -> Result<Value> {
        let mut line = String::new();
        let read = std::io::Read::take(&mut self.stream, MAX_LINE).read_line(&mut line);
        match read {
            Ok(0) => Err(self.failed(command, "QEMU closed the connection".to_owned())),
            Ok(_) => serde_json::from_str(&line)
                .map_err(|e| self.failed(command, format!("not an answer: {e}"))),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                let seconds = PATIENCE.as_secs();
                Err(self.failed(command, format!("no answer within {seconds} s")))
            }
            Err(e) => Err(self.failed(command, e.to_string())),
        }
    }

    fn failed(&self, command: &str, reason: String) -> LabError {
        LabError::Monitor {
            socket: self.socket.clone(),
            command: command.to_owned(),
            reason,
        }
    }
}

/// What a line answers; `None` for an event.
fn reply(mut line: Value) -> Option<Result<Value, String>> {
    if let Some(value) = line.get_mut("return") {
        return Some(Ok(value.take()));
    }
    let error = line.get("error")?;
    let text = error["desc"]
        .as_str()
        .map_or_else(|| error.to_string(), str::to_owned);
    Some(Err(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn events_are_no_answers_and_errors_have_words() {
        assert!(reply(json!({ "event": "STOP", "data": {} })).is_none());
        assert_eq!(
            reply(json!({ "return": { "status": "paused" } }))
                .unwrap()
                .unwrap()["status"],
            "paused"
        );
        let error = json!({ "error": { "class": "GenericError", "desc": "no such device" } });
        assert_eq!(reply(error).unwrap().unwrap_err(), "no such device");
    }

    #[test]
    fn a_monitor_greets_negotiates_and_answers() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        let qemu = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"{\"QMP\": {}}\r\n").unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            assert!(lines.next().unwrap().unwrap().contains("qmp_capabilities"));
            stream.write_all(b"{\"return\": {}}\r\n").unwrap();
            assert!(lines.next().unwrap().unwrap().contains("query-status"));
            stream
                .write_all(b"{\"event\": \"STOP\"}\r\n{\"return\": {\"status\": \"paused\"}}\r\n")
                .unwrap();
        });
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut monitor = Monitor::connect(&socket, deadline, || true).unwrap();
        assert_eq!(monitor.run_state().unwrap(), "paused");
        qemu.join().unwrap();
        let error = monitor.run_state().unwrap_err().to_string();
        assert!(error.contains("query-status"), "{error}");
    }

    #[test]
    fn nobody_waits_for_a_dead_qemu() {
        let dir = tempfile::tempdir().unwrap();
        let deadline = Instant::now() + Duration::from_mins(1);
        let error = Monitor::connect(&dir.path().join("none"), deadline, || false).unwrap_err();
        assert!(error.to_string().contains("QEMU has ended"));
    }
}

//! Running a command to its end, with a bound on its time.

use std::ffi::OsStr;
use std::fmt;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::starts;

/// Longest time that a command may take: generous, because the first one
/// may build a kernel.
const PATIENCE: Duration = Duration::from_mins(20);

/// A command that is being put together.
#[derive(Debug)]
pub struct Invocation {
    command: Command,
    stdin: Vec<u8>,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    what: String,
    /// How it ended.
    pub status: ExitStatus,
    /// All that it wrote to standard output.
    pub stdout: String,
    /// All that it wrote to standard error.
    pub stderr: String,
}

impl Invocation {
    /// A run of `program`; what guests it starts is counted.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.env(starts::ENV, starts::log());
        Self {
            command,
            stdin: Vec::new(),
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Gives it something to read.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Starts it without waiting; its streams are pipes.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn spawn(mut self) -> Child {
        self.command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.command
            .spawn()
            .unwrap_or_else(|error| panic!("starting {:?}: {error}", self.command))
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// If it cannot be started, or takes longer than any command should.
    pub fn run(self) -> Finished {
        let what = format!("{:?}", self.command);
        let stdin = self.stdin.clone();
        let mut child = self.spawn();
        let mut input = child.stdin.take();
        let feeder = thread::spawn(move || {
            if let Some(input) = &mut input {
                // A command that does not read its input is free not to.
                let _ = input.write_all(&stdin);
            }
        });
        let stdout = drain(child.stdout.take());
        let stderr = drain(child.stderr.take());
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                result => {
                    let _ = child.kill();
                    panic!("{what} did not end within {PATIENCE:?}: {result:?}");
                }
            }
        };
        let joined = (feeder.join(), stdout.join(), stderr.join());
        let (Ok(()), Ok(stdout), Ok(stderr)) = joined else {
            panic!("a stream of {what} could not be read");
        };
        Finished {
            what,
            status,
            stdout,
            stderr,
        }
    }
}

impl Finished {
    /// The exit code; a signal is reported as a shell does.
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Checks that it ended well, and gives its standard output without the
    /// last line's end.
    ///
    /// # Panics
    /// If it did not, with all that it said.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code(), 0, "{self}");
        self.stdout.trim_end_matches('\n').to_owned()
    }

    /// Checks that it failed with this code and that its message holds each
    /// of these words.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    #[allow(clippy::must_use_candidate, clippy::return_self_not_must_use)]
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code(), code, "{self}");
        for word in words {
            assert!(
                self.stderr.to_lowercase().contains(&word.to_lowercase()),
                "the message does not mention {word:?}: {self}"
            );
        }
        self
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}\n  ended with {}\n  stdout: {}\n  stderr: {}",
            self.what, self.status, self.stdout, self.stderr
        )
    }
}

fn drain(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // What arrived before an error is still worth showing.
            let _ = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

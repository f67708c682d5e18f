//! Commands and files in a running lab.

use std::io::{self, IsTerminal};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use guest_agent::client::{
    Attach, Captured, Client, ClientError, Endpoint, Outcome, Session, terminal_size,
};
use guest_agent::protocol::{Exec, Target, Terminal};

use super::Lab;
use super::error::{LabError, Result};

/// Programs in the lab: ours first, busybox last, for what is not installed.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/opt/busybox";
/// How long the daemon may take to greet. The machine may be busy.
const GREETING: Duration = Duration::from_secs(20);
/// How soon a dying QEMU is gone.
const DYING: Duration = Duration::from_millis(300);

/// A command to be run in the lab, as root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables of its environment, beside `PATH`, `HOME`, `LANG` and, on a terminal, `TERM`.
    pub env: Vec<(String, String)>,
    /// Its working directory; root's home if absent.
    pub cwd: Option<String>,
    /// Run it on a terminal, if standard input is one here.
    pub terminal: bool,
}

impl Command {
    /// A command without a terminal.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: None,
            terminal: false,
        }
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    fn exec(&self, terminal: Option<Terminal>) -> Exec {
        let mut env = vec![
            format!("PATH={PATH}"),
            "HOME=/root".to_owned(),
            "USER=root".to_owned(),
            "LANG=C.UTF-8".to_owned(),
        ];
        if terminal.is_some() {
            let term = std::env::var("TERM").unwrap_or_else(|_| "linux".to_owned());
            env.push(format!("TERM={term}"));
        }
        env.extend(
            self.env
                .iter()
                .map(|(name, value)| format!("{name}={value}")),
        );
        Exec {
            target: Target::Machine,
            argv: self.argv.clone(),
            env,
            cwd: Some(self.cwd.clone().unwrap_or_else(|| "/root".to_owned())),
            user: None,
            terminal,
        }
    }
}

/// The lab's daemon.
pub(super) fn endpoint(port: u16, token: &str) -> Endpoint {
    Endpoint::Tcp {
        addr: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        token: token.as_bytes().to_vec(),
    }
}

impl Lab {
    /// A connection to the lab's daemon, for requests beside the ones below.
    ///
    /// # Errors
    /// It does not answer, or the lab has died.
    pub fn connect(&self) -> Result<Client> {
        let endpoint = endpoint(self.instance.port, &self.instance.token);
        let client = Client::connect_within(&endpoint, GREETING);
        client.map_err(|error| self.explain(error))
    }

    /// Runs a command on this process's standard streams (or terminal) and
    /// returns its exit code, 128 + the signal's number when one ended it.
    /// Signals that this process gets in the meantime go to the command.
    ///
    /// # Errors
    /// It cannot be started (an agent's failure: see its code), or the lab died.
    pub fn run(&self, command: &Command) -> Result<u8> {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let size = terminal_size(stdin.as_fd())
            .filter(|_| command.terminal && stdin.is_terminal() && stdout.is_terminal());
        let session = self.start(command, size)?;
        let mut attach = Attach::streams(&stdin, &stdout, &stderr);
        attach.terminal = size.is_some();
        let outcome = session
            .attach(&attach)
            .map_err(|error| self.explain(error))?;
        self.place.touch();
        Ok(outcome.shell_code())
    }

    /// Runs a command on streams of the caller's choice, as [`Lab::run`] does.
    ///
    /// # Errors
    /// As [`Lab::run`].
    pub fn attach(&self, command: &Command, how: &Attach<'_>) -> Result<Outcome> {
        let size = how.stdin.filter(|_| how.terminal).and_then(terminal_size);
        let session = self.start(command, size)?;
        session.attach(how).map_err(|error| self.explain(error))
    }

    /// Runs a command with `stdin` and returns all of its output.
    ///
    /// # Errors
    /// As [`Lab::run`], and when it takes longer than `within`.
    pub fn capture(&self, command: &Command, stdin: &[u8], within: Duration) -> Result<Captured> {
        let session = self.start(command, None)?;
        session
            .capture(stdin, within)
            .map_err(|error| self.explain(error))
    }

    /// Starts a command and leaves its streams to the caller.
    ///
    /// # Errors
    /// The daemon does not answer. That the command cannot be started is seen
    /// in the session.
    pub fn start(&self, command: &Command, terminal: Option<Terminal>) -> Result<Session> {
        Ok(self.connect()?.exec(command.exec(terminal)))
    }

    /// Copies a file of the lab to `to`; returns its size.
    ///
    /// # Errors
    /// It cannot be read there or written here, or the lab died.
    pub fn fetch(&self, from: &str, to: &Path) -> Result<u64> {
        self.connect()?
            .get_file(from, to)
            .map_err(|error| self.explain(error))
    }

    /// Copies a file to `to` of the lab, with permission bits `mode`; returns
    /// its size. For large files and for what may be there already, use
    /// [`Lab::sync`].
    ///
    /// # Errors
    /// It cannot be read here or written there, or the lab died.
    pub fn push(&self, from: &Path, to: &str, mode: u32) -> Result<u64> {
        self.connect()?
            .put_file(from, to, mode)
            .map_err(|error| self.explain(error))
    }

    /// Tells a dead lab from other failures.
    fn explain(&self, error: ClientError) -> LabError {
        let lost = matches!(
            error,
            ClientError::Connect { .. }
                | ClientError::Closed { .. }
                | ClientError::Io { .. }
                | ClientError::Timeout { .. }
        );
        // The connection is gone a moment before the process is.
        if lost && self.place.wait_for_end(DYING) {
            return LabError::Died {
                cause: error.to_string(),
                console: self.place.console(),
                kept: self.place.earlier_console(),
                log: self.place.last_words(),
            };
        }
        error.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_root_s_environment_and_its_own() {
        let command = Command::new(["sh", "-c", "true"]).env("INSULA_ON", "hardware");
        let exec = command.exec(None);
        assert_eq!(exec.cwd.as_deref(), Some("/root"));
        assert_eq!(
            exec.env.last().map(String::as_str),
            Some("INSULA_ON=hardware")
        );
        assert!(exec.env[0].starts_with("PATH=") && exec.env[0].ends_with(":/opt/busybox"));
        assert!(
            !exec
                .env
                .iter()
                .any(|variable| variable.starts_with("TERM="))
        );
        let exec = command.exec(Some(Terminal {
            rows: 24,
            columns: 80,
        }));
        assert!(
            exec.env
                .iter()
                .any(|variable| variable.starts_with("TERM="))
        );
    }
}

//! Finding the guest that is meant, and its agent.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use guest_agent::client::{Attach, Client, Session, terminal_size};
use guest_agent::protocol::{Name, Terminal};
use vmm::guest::{GuestDir, RunRoot};

use crate::failure::{Failure, Outcome};
use crate::output::Output;

/// The guest whose name is used when none is given.
pub(crate) const MAIN: &str = "main";

/// The guest that is meant, or `None` when none was named and none runs.
pub(crate) fn choose(choice: Option<&Name>, output: &Output) -> Result<Option<GuestDir>, Failure> {
    let root = RunRoot::for_user()?;
    if let Some(name) = choice {
        return Ok(Some(root.find_living(name)?));
    }
    sweep(&root, output);
    let mut living = Vec::new();
    for dir in root.guests()? {
        let status = dir.status()?;
        let is_one_shot = status.record.is_some_and(|record| record.ephemeral);
        if dir.is_alive()? && !is_one_shot {
            living.push(dir);
        }
    }
    if living.len() > 1 {
        if let Some(main) = living.iter().find(|dir| dir.name().as_str() == MAIN) {
            return Ok(Some(main.clone()));
        }
        let names: Vec<_> = living.iter().map(|dir| dir.name().as_str()).collect();
        return Err(Failure::usage(format!(
            "which guest? These are running: {}; say --guest NAME",
            names.join(", ")
        )));
    }
    Ok(living.pop())
}

/// A connection with the agent of the guest that is meant.
pub(crate) fn connect(choice: Option<&Name>, output: &Output) -> Result<Client, Failure> {
    match choose(choice, output)? {
        Some(dir) => {
            dir.check_running()?;
            Ok(Client::connect(&dir.endpoint())?)
        }
        None => Err(Failure::new(
            "no guest is running: start one with `insula guest start`, \
             or make a VPS, which starts one: `insula vps create web`",
        )),
    }
}

/// Removes what killed guests left, and says so. That it can't is no reason
/// not to do what was asked for.
pub(crate) fn sweep(root: &RunRoot, output: &Output) {
    match root.sweep() {
        Ok(names) => {
            for name in names {
                output.say(format!("guest {name} was killed; removed what it left"));
            }
        }
        Err(error) => output.say(error.to_string()),
    }
}

/// How a command is given our streams.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Streams {
    /// On a terminal of this size; on pipes when absent.
    pub(crate) terminal: Option<Terminal>,
    /// Our standard input is a terminal too, whose keys are passed on.
    raw: bool,
}

impl Streams {
    /// A terminal when it is wanted, or when nobody says and we have one.
    pub(crate) fn new(wanted: bool, unwanted: bool) -> Self {
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let both = stdin.is_terminal() && stdout.is_terminal();
        if !wanted && (unwanted || !both) {
            return Self {
                terminal: None,
                raw: false,
            };
        }
        let size = terminal_size(stdout.as_fd()).or_else(|| terminal_size(stdin.as_fd()));
        let terminal = size.unwrap_or(Terminal {
            rows: 24,
            columns: 80,
        });
        Self {
            terminal: Some(terminal),
            raw: stdin.is_terminal(),
        }
    }

    /// What a program on a terminal needs to know of it, before what the user set.
    pub(crate) fn environment(self, user: &[String]) -> Vec<String> {
        let mut env = Vec::new();
        if self.terminal.is_some()
            && let Ok(term) = std::env::var("TERM")
        {
            env.push(format!("TERM={term}"));
        }
        env.extend_from_slice(user);
        env
    }

    /// Connects the session with our streams until it ends; its exit code.
    pub(crate) fn attach(self, session: Session, detach: Option<u8>) -> Outcome {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let attach = Attach {
            terminal: self.raw,
            detach,
            ..Attach::streams(&stdin, &stdout, &stderr)
        };
        Ok(session.attach(&attach)?.shell_code())
    }
}

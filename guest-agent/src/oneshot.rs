//! `insula-agent run`: one VPS, from creation to destruction, in one process.
//!
//! ```text
//! insula-agent run (--template IMAGE | --root DIRECTORY) [options] -- COMMAND [ARGUMENT]...
//!   --hostname NAME   host name of the VPS (vps)
//!   --memory BYTES    limit of its memory; K, M and G are understood
//!   --cpus N          limit of its CPU time, in CPUs: 0.5, 2
//!   --pids N          limit of its processes and threads
//!   --env NAME=VALUE  added to its environment; can be repeated
//!   --cgroup DIR      cgroup to make its own cgroup in (/sys/fs/cgroup)
//! ```
//!
//! The command is PID 1 of the VPS, on the caller's standard streams. The exit
//! code is the command's; 128 + n when signal n ended it; 0 when it halted or
//! rebooted its VPS; 127 and 126 when it was not found or not executable; 125
//! when anything else failed. What it writes is kept in memory and is gone at
//! its end.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use thiserror::Error;

use crate::protocol::{Exit, Init, Limits, Name, RestartPolicy, VpsSpec};
use crate::vps::{
    self, Engine, IdRange, Io, Process, Start, Template, TemplateSource, Vps, exit, place,
};

/// How often, and how long, an ended VPS's cgroup is tried to be removed:
/// 2 seconds in all.
const REMOVALS: u32 = 1000;
const REMOVAL_PAUSE: Duration = Duration::from_millis(2);

#[derive(Debug, Error)]
enum Error {
    #[error("{0}; see insula-agent run --help")]
    Usage(String),
    #[error("{0}")]
    Engine(#[from] vps::Error),
    #[error("cannot find out where this process is: {0}")]
    Place(rustix::io::Errno),
    #[error("cannot wait for the command: {0}")]
    Wait(rustix::io::Errno),
}

impl Error {
    fn code(&self) -> u8 {
        match self {
            Self::Engine(error) => error.shell_code(),
            _ => 125,
        }
    }
}

/// What is asked for.
#[derive(Debug, PartialEq)]
struct Request {
    source: TemplateSource,
    hostname: Name,
    limits: Limits,
    env: Vec<String>,
    cgroup: PathBuf,
    command: Vec<String>,
}

const HELP: &str = "\
Run a command as PID 1 of a new VPS, and remove the VPS when it ends.

usage: insula-agent run (--template IMAGE | --root DIRECTORY) [options] -- COMMAND [ARGUMENT]...

  --template IMAGE  EROFS image that the VPS starts from
  --root DIRECTORY  directory that it starts from, instead
  --hostname NAME   its host name (vps)
  --memory BYTES    limit of its memory; K, M and G are understood
  --cpus N          limit of its CPU time, in CPUs: 0.5, 2
  --pids N          limit of its processes and threads
  --env NAME=VALUE  added to its environment; can be repeated
  --cgroup DIR      cgroup to make its own cgroup in (/sys/fs/cgroup)

exit code: the command's; 128 + n for signal n; 127 not found; 126 not
executable; 125 for any other failure

example: insula-agent run --template busybox.erofs --memory 64M -- sh -c 'hostname; exit 7'
";

/// Runs `insula-agent run` with the arguments behind `run`; returns the exit
/// code.
pub fn main(args: impl Iterator<Item = OsString>) -> u8 {
    match parse(args).and_then(|request| request.map_or(Ok(0), |request| run(&request))) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("insula-agent run: {error}");
            error.code()
        }
    }
}

/// Reads the arguments; `None` when help was asked for and given.
fn parse(args: impl Iterator<Item = OsString>) -> Result<Option<Request>, Error> {
    use lexopt::prelude::*;
    let usage = |error: lexopt::Error| Error::Usage(error.to_string());
    let mut parser = lexopt::Parser::from_args(args);
    let mut source = None;
    let mut limits = Limits::default();
    let (mut hostname, mut env, mut command) = (None, Vec::new(), Vec::new());
    let mut cgroup = PathBuf::from("/sys/fs/cgroup");
    while let Some(arg) = parser.next().map_err(usage)? {
        let value = |parser: &mut lexopt::Parser| parser.value().map_err(usage);
        let text = |parser: &mut lexopt::Parser| value(parser)?.string().map_err(usage);
        match arg {
            Long("template") => source = Some(TemplateSource::Erofs(value(&mut parser)?.into())),
            Long("root") => source = Some(TemplateSource::Directory(value(&mut parser)?.into())),
            Long("hostname") => {
                let name = Name::new(text(&mut parser)?);
                hostname = Some(name.map_err(|error| Error::Usage(error.to_string()))?);
            }
            Long("memory") => limits.memory_bytes = Some(bytes(&text(&mut parser)?)?),
            Long("cpus") => limits.cpu_milli = Some(milli(&text(&mut parser)?)?),
            Long("pids") => limits.pids = Some(number(&text(&mut parser)?)?),
            Long("env") => env.push(text(&mut parser)?),
            Long("cgroup") => cgroup = value(&mut parser)?.into(),
            Long("help") => {
                print!("{HELP}");
                return Ok(None);
            }
            Value(first) => {
                command.push(first.string().map_err(usage)?);
                for argument in parser.raw_args().map_err(usage)? {
                    command.push(argument.string().map_err(usage)?);
                }
            }
            _ => return Err(usage(arg.unexpected())),
        }
    }
    let source =
        source.ok_or_else(|| Error::Usage("give --template IMAGE or --root DIRECTORY".into()))?;
    if command.is_empty() {
        return Err(Error::Usage("give a command".into()));
    }
    let hostname = match hostname {
        Some(hostname) => hostname,
        None => Name::new("vps").map_err(|error| Error::Usage(error.to_string()))?,
    };
    Ok(Some(Request {
        source,
        hostname,
        limits,
        env,
        cgroup,
        command,
    }))
}

fn number(text: &str) -> Result<u32, Error> {
    text.parse::<u32>()
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| Error::Usage(format!("{text:?} is not a positive number")))
}

/// `64M` and the like, in bytes.
fn bytes(text: &str) -> Result<u64, Error> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| Error::Usage(format!("{text:?} is not a size: use bytes, or K, M, G")))
}

/// `0.5` CPUs and the like, in thousandths.
fn milli(text: &str) -> Result<u32, Error> {
    text.parse::<f64>()
        .ok()
        .map(|cpus| (cpus * 1000.0).round())
        .filter(|milli| (1.0..=1_000_000.0).contains(milli))
        .map(|milli| milli as u32)
        .ok_or_else(|| {
            Error::Usage(format!(
                "{text:?} is not a number of CPUs: use 0.5, 1, 2, …"
            ))
        })
}

fn run(request: &Request) -> Result<u8, Error> {
    if place::on_initramfs().map_err(Error::Place)? {
        place::own_mounts()?;
        place::leave_initramfs()?;
    }
    let pid = std::process::id();
    let name = Name::new(format!("{}{pid}", vps::engine::ONE_SHOT));
    let spec = VpsSpec {
        name: name.map_err(|error| Error::Usage(error.to_string()))?,
        template: request.hostname.clone(),
        hostname: Some(request.hostname.clone()),
        init: Init::Command(request.command.clone()),
        limits: request.limits.clone(),
        autostart: false,
        restart: RestartPolicy::Never,
    };
    let mut uuid = [0; 16];
    uuid[..4].copy_from_slice(&pid.to_be_bytes());
    let vps = Vps {
        spec,
        ids: IdRange::ephemeral(pid),
        uuid,
    };
    let engine = Engine::for_one(&request.cgroup, &vps.spec)?;
    let template = Template::open_once(&request.source)?;

    let signals = place::hold_signals();
    let start = Start {
        env: &request.env,
        io: Io::Inherit,
    };
    let foreground = place::Foreground::note();
    let running = engine.start(&vps, &template, &start)?;
    drop(template);
    let exit = wait(&running.init, &signals);
    foreground.restore();
    for _ in 0..REMOVALS {
        if engine.teardown(&vps)? {
            break;
        }
        std::thread::sleep(REMOVAL_PAUSE);
    }
    Ok(exit?.shell_code())
}

/// Waits for the init, passing signals on. The second one kills: an init
/// without a handler does not notice the first.
fn wait(init: &Process, signals: &place::HeldSignals) -> Result<Exit, Error> {
    let mut asked = false;
    loop {
        match signals.next() {
            libc::SIGCHLD => {
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
                let status =
                    waitid(WaitId::PidFd(init.pidfd.as_fd()), options).map_err(Error::Wait)?;
                if let Some(status) = status {
                    return Ok(exit::of_init(&status));
                }
            }
            signal => {
                let signal = Signal::from_named_raw(signal).filter(|_| !asked);
                asked = true;
                // It may have ended just now.
                let _ = pidfd_send_signal(&init.pidfd, signal.unwrap_or(Signal::KILL));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Option<Request>, Error> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn a_whole_command_line() {
        let request =
            parsed("--template a.erofs --hostname web --memory 64M --cpus 0.5 --pids 32 --env A=b -- sh -c --help")
                .unwrap()
                .unwrap();
        assert_eq!(request.source, TemplateSource::Erofs("a.erofs".into()));
        assert_eq!(request.hostname.as_str(), "web");
        let limits = Limits {
            memory_bytes: Some(64 << 20),
            cpu_milli: Some(500),
            cpu_weight: None,
            pids: Some(32),
        };
        assert_eq!(request.limits, limits);
        assert_eq!(request.command, ["sh", "-c", "--help"]);
    }

    #[test]
    fn bad_command_lines() {
        for line in [
            "",
            "--root /",
            "-- sh",
            "--root / --memory x -- sh",
            "--root / --memory 99999999999G -- sh",
            "--root / --cpus 0 -- sh",
            "--root / --cpus nan -- sh",
            "--root / --pids -1 -- sh",
            "--root / --hostname UPPER -- sh",
            "--root / --bogus -- sh",
        ] {
            assert!(matches!(parsed(line), Err(Error::Usage(_))), "{line}");
        }
    }
}

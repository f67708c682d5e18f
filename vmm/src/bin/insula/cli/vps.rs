//! `insula vps`

use std::time::Duration;

use clap::{Args, Subcommand};
use guest_agent::protocol::Name;
use vmm::guest::Size;

use super::values;

pub(super) const EXAMPLES: &str = "\
Examples:
  insula vps create web --memory 256M --cpus 0.5 --pids 200
  insula vps exec web -- sh -c 'echo hello > /root/note'
  insula vps exec web                     a shell, on a terminal
  insula vps exec web -- reboot           it comes back by itself, with a new boot count
  insula vps list
  insula vps stop web && insula vps destroy web

Without --guest, the only guest that runs is meant; `create` starts one called main when none
does.";

/// What to do with VPSs.
#[derive(Debug, Subcommand)]
pub(crate) enum VpsCommand {
    /// Define a VPS and start it
    Create {
        #[command(flatten)]
        guest: GuestChoice,
        /// Its name
        name: Name,
        /// The template that its file system starts from
        #[arg(long, value_name = "NAME", default_value = "busybox")]
        template: Name,
        /// Its host name [default: its name]
        #[arg(long, value_name = "NAME")]
        hostname: Option<Name>,
        #[command(flatten)]
        limits: LimitOptions,
        /// Start it whenever the guest starts
        #[arg(long)]
        autostart: bool,
        /// Take a reboot from inside as a halt
        #[arg(long)]
        no_reboot: bool,
        /// Only define it
        #[arg(long)]
        no_start: bool,
        /// What to run as its PID 1, in place of the template's own init
        #[arg(last = true, value_name = "INIT")]
        init: Vec<String>,
    },
    /// Start VPSs
    Start {
        #[command(flatten)]
        guest: GuestChoice,
        /// The VPSs
        #[arg(required = true, value_name = "NAME")]
        names: Vec<Name>,
    },
    /// Run a command in a VPS and exit with its code
    ///
    /// On a terminal, the command gets one too. Its input, output, signals
    /// and exit code are carried: 126 when it can't be executed, 127 when it
    /// is not found, 128+n when signal n ended it.
    Exec {
        #[command(flatten)]
        guest: GuestChoice,
        /// Give the command a terminal [default: when input and output are one]
        #[arg(short, long)]
        terminal: bool,
        /// Give the command no terminal
        #[arg(short = 'T', long, conflicts_with = "terminal")]
        no_terminal: bool,
        /// Pass on the standard input (the default; for those who are used to it)
        #[arg(short, long)]
        interactive: bool,
        /// Run as this user: `user`, `uid`, `user:group` or `uid:gid` [default: root]
        #[arg(short, long, value_name = "USER")]
        user: Option<String>,
        /// Working directory
        #[arg(short = 'w', long, value_name = "DIR")]
        cwd: Option<String>,
        /// Set a variable: NAME=value, or NAME for the value that it has here
        #[arg(short, long, value_name = "NAME=VALUE", value_parser = values::env)]
        env: Vec<String>,
        /// The VPS
        name: Name,
        /// The command [default: a shell]
        #[arg(last = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Stop VPSs and start them again
    Restart {
        #[command(flatten)]
        guest: GuestChoice,
        /// The VPSs
        #[arg(required = true, value_name = "NAME")]
        names: Vec<Name>,
        /// How long a VPS may take to stop before it is killed
        #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::duration)]
        timeout: Duration,
    },
    /// Stop VPSs; they stay defined
    Stop {
        #[command(flatten)]
        guest: GuestChoice,
        /// The VPSs
        #[arg(required = true, value_name = "NAME")]
        names: Vec<Name>,
        /// How long a VPS may take to stop before it is killed
        #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::duration)]
        timeout: Duration,
    },
    /// List the VPSs of a guest
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        guest: GuestChoice,
    },
    /// Destroy VPSs and all of their files
    #[command(visible_alias = "rm")]
    Destroy {
        #[command(flatten)]
        guest: GuestChoice,
        /// The VPSs
        #[arg(required = true, value_name = "NAME")]
        names: Vec<Name>,
        /// Kill those that run
        #[arg(short, long)]
        force: bool,
    },
    /// Attach to a VPS's console; Ctrl-] leaves it
    Console {
        #[command(flatten)]
        guest: GuestChoice,
        /// The VPS
        name: Name,
    },
}

/// Which guest.
#[derive(Debug, Clone, Args)]
pub(crate) struct GuestChoice {
    /// The guest [default: the only one that runs]
    #[arg(short, long, value_name = "NAME", env = "INSULA_GUEST")]
    pub(crate) guest: Option<Name>,
}

/// Limits of a VPS.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct LimitOptions {
    /// Most memory, page cache included [default: no limit]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<Size>,
    /// Most CPU time, in CPUs: 0.5 is half of one [default: no limit]
    #[arg(long, value_name = "CPUS", value_parser = values::cpus)]
    pub(crate) cpus: Option<u32>,
    /// Share of the CPU when there is not enough, 1 to 10000 [default: 100]
    #[arg(long, value_name = "WEIGHT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) cpu_weight: Option<u32>,
    /// Most processes and threads [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) pids: Option<u32>,
}

//! `insula run`

use clap::{Args, ValueEnum};
use guest_agent::protocol::Name;
use vmm::config::VcpuCount;

use super::{ColdOption, LimitOptions, values};

pub(super) const EXAMPLES: &str = "\
Examples:
  insula run -- sh -c 'hostname; exit 7'              exits with 7
  insula run --model microvm --vcpus 4 -- nproc
  insula run --model host-vps --memory 64M -- sh      a shell in a VPS on the host's kernel
  insula run --guest main -- ps                       in a guest that runs already
  echo hello | insula run -- wc -c

Whatever happens, Ctrl-C and SIGTERM included, nothing is left behind.";

/// `insula run`
#[derive(Debug, Clone, Args)]
pub(crate) struct RunOptions {
    /// How the command is kept apart
    #[arg(short, long, value_name = "MODEL", default_value = "guest-vps")]
    pub(crate) model: Model,
    /// The template that its file system starts from
    #[arg(long, value_name = "NAME", default_value = "busybox")]
    pub(crate) template: Name,
    /// guest-vps: run in this guest, not in one of its own
    #[arg(short, long, value_name = "NAME")]
    pub(crate) guest: Option<Name>,
    /// guest-vps, microvm: virtual processors of the guest [default: as many
    /// as --cpus asks for]
    #[arg(long, value_name = "N", value_parser = values::vcpus)]
    pub(crate) vcpus: Option<VcpuCount>,
    #[command(flatten)]
    pub(crate) start: ColdOption,
    #[command(flatten)]
    pub(crate) limits: LimitOptions,
    /// Host name [default: the one that insula chose]
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<Name>,
    /// Give the command a terminal [default: when input and output are one]
    #[arg(short, long)]
    pub(crate) terminal: bool,
    /// Give the command no terminal
    #[arg(short = 'T', long, conflicts_with = "terminal")]
    pub(crate) no_terminal: bool,
    /// Set a variable: NAME=value, or NAME for the value that it has here
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = values::env)]
    pub(crate) env: Vec<String>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

/// How an instance is kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Model {
    /// Not at all: a process of the host
    Process,
    /// A VPS on the host's kernel
    HostVps,
    /// A VPS on the kernel of a guest
    GuestVps,
    /// A guest of its own
    Microvm,
}

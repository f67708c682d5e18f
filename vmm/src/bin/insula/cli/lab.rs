//! `insula lab`

use clap::Subcommand;

pub(super) const EXAMPLES: &str = "\
Examples:
  insula lab run -- insula guest list     a command in the lab, with its exit code
  insula lab run --icount -- true         in the lab whose clock counts instructions
  insula lab shell
  insula lab stop

The lab is an emulated AMD host with SVM (QEMU's TCG) that boots Debian's kernel and has an
ordinary /dev/kvm. It is slow, and it is everywhere. Other commands start it by themselves where
there is no hardware virtualization; it stays up until it is stopped. With --icount its clock
advances a nanosecond for each instruction, so that times repeat: figures for comparing programs,
not for any real machine.";

/// What to do with the lab.
#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Start it; does nothing when it is up
    Start {
        /// The lab whose clock counts instructions
        #[arg(long)]
        icount: bool,
    },
    /// Stop it
    Stop {
        /// The lab whose clock counts instructions
        #[arg(long)]
        icount: bool,
    },
    /// Say whether it is up
    Status {
        /// The lab whose clock counts instructions
        #[arg(long)]
        icount: bool,
    },
    /// Run a command in it, as root, and exit with its code
    Run {
        /// The lab whose clock counts instructions
        #[arg(long)]
        icount: bool,
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// A shell in it
    Shell {
        /// The lab whose clock counts instructions
        #[arg(long)]
        icount: bool,
    },
}

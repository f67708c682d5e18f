//! The command line's grammar.

mod guest;
mod image;
mod lab;
mod run;
pub(crate) mod values;
mod vps;

use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub(crate) use guest::{GuestCommand, MachineOptions, RestoreOptions, StartOptions, TakeOptions};
pub(crate) use image::ImageCommand;
pub(crate) use lab::LabCommand;
pub(crate) use run::{Model, RunOptions};
pub(crate) use vps::{GuestChoice, LimitOptions, VpsCommand};

const ABOUT: &str = "Virtual machines and the virtual private servers in them";

const LONG_ABOUT: &str = "\
Virtual machines and the virtual private servers in them.

insula boots guests (virtual machines) in a fraction of a second on KVM, and partitions the \
kernel of each into VPSs: each has its own processes, users, network, limits and init, and looks \
like a machine of its own. The same partitioning works without a guest, on the host's kernel.

Where there is no KVM on real hardware virtualization, every command runs in the lab, an \
emulated host, without being asked to: see `insula lab --help`. `insula doctor` says what this \
machine can do.";

const EXAMPLES: &str = "\
Examples:
  insula doctor                                what can this machine do?
  insula run -- sh -c 'hostname; exit 7'       one command in a VPS in a guest of its own
  insula run --model microvm -- nproc          the same in a virtual machine of its own
  insula guest start main --memory 1G          a guest that stays
  insula vps create web --memory 256M          a VPS in it
  insula vps exec web -- ps                    a command in the VPS
  insula vps exec web -- reboot                it comes back by itself
  insula guest stop main
  insula compare                               what does each kind of isolation cost?

Exit codes: see `insula help exit-codes`.";

/// The text of `insula help exit-codes`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes of insula

    0   it worked
    1   it did not; the message says what failed and what to do
        (`insula doctor`: guests cannot run here in any way)
    2   the command line or a configuration file is wrong
   20   the guest's kernel panicked, or it was reset, before it was ready
   21   the guest met a triple fault before it was ready
   22   KVM or the machine process failed while the guest started
   23   the machine's configuration was refused: a kernel that is not one, say
   24   the guest was not ready in time
   25   a snapshot cannot be restored, or not here: it was altered or cut off, is newer than
        this program, needs a processor feature that this host lacks, or has an unknown device
   26   there is no room for a snapshot; the guest goes on
  126   `run`, `vps exec`, `lab run`: the command could not be executed
  127   `run`, `vps exec`, `lab run`: the command was not found
128+n   ended by signal n (130: Ctrl-C, 143: SIGTERM), insula itself or the command

`run`, `vps exec` and `lab run` exit with the code of the command that they ran: a code of 1, 2
or 20 to 26 without a message that begins with \"insula:\" is the command's own.

The machine process, insula-vmm, exits with 0 after a clean power-off, and with 20 to 25 and
128+n in the sense above; `insula guest list` and `insula guest stop` report it.
";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "insula", version, about = ABOUT, long_about = LONG_ABOUT, after_help = EXAMPLES)]
#[command(
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// Where guests run: on this machine's KVM, or in the lab. Without this,
    /// on hardware where there is any, else in the lab
    #[arg(long, global = true, value_name = "PLACE", env = "INSULA_ON")]
    pub(crate) on: Option<On>,
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say nothing but results and errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Say what is done
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub(crate) verbose: bool,
}

/// The variable that means `--cold`.
pub(crate) const COLD_ENV: &str = "INSULA_COLD";

/// How guests are started.
#[derive(Debug, Clone, Args)]
pub(crate) struct ColdOption {
    /// Boot the guest, even where a snapshot of one like it is kept
    ///
    /// Otherwise a guest that was started before with the same kernel, agent,
    /// templates and options, on this host, is not booted again but restored
    /// from a snapshot of that first one, taken when it had booted and before
    /// it did anything: with random numbers, a host name and a clock of its
    /// own, and an empty console. A guest with a disk given by --data, or with
    /// --profile, always boots. `insula image list` shows these snapshots, and
    /// `insula image prune` removes them.
    #[arg(long, env = COLD_ENV, value_parser = FalseyValueParser::new())]
    pub(crate) cold: bool,
}

/// Where guests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum On {
    /// This machine's own KVM
    Hardware,
    /// This machine's own KVM of the PVM kind, which emulates guests' kernels
    Pvm,
    /// The emulated host
    Lab,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Guests: virtual machines that stay
    #[command(subcommand, after_help = guest::EXAMPLES)]
    Guest(GuestCommand),
    /// Virtual private servers in a guest
    #[command(subcommand, after_help = vps::EXAMPLES)]
    Vps(VpsCommand),
    /// Run one command isolated, exit with its code and leave nothing behind
    ///
    /// A guest for the command is restored from a snapshot of an earlier one
    /// of its kind as it was when it had booted, if there was one; see --cold.
    #[command(after_help = run::EXAMPLES)]
    Run(RunOptions),
    /// What guests are made of: kernels, agents, templates
    #[command(subcommand, after_help = image::EXAMPLES)]
    Image(ImageCommand),
    /// An emulated host with hardware virtualization, for machines that have none
    #[command(subcommand, after_help = lab::EXAMPLES)]
    Lab(LabCommand),
    /// Find out what this machine can do, and how to cure what it can't
    ///
    /// Exits with 0 when guests can run here, on hardware or in the lab, and
    /// with 1 when they can't.
    Doctor,
    /// Compare what each kind of isolation costs
    ///
    /// Runs insula-compare with the same arguments; see
    /// `insula compare --help`.
    #[command(disable_help_flag = true)]
    Compare {
        /// Arguments of insula-compare
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<std::ffi::OsString>,
    },
    /// Print a completion script for a shell
    ///
    /// bash: `insula completions bash > /etc/bash_completion.d/insula`
    /// zsh: `insula completions zsh > "${fpath[1]}/_insula"`
    /// fish: `insula completions fish > ~/.config/fish/completions/insula.fish`
    #[command(verbatim_doc_comment)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Exit codes and what they mean
    ExitCodes,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    fn parse(line: &str) -> Result<Cli, String> {
        Cli::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_and_names_out_of_bounds_are_refused_with_what_would_do() {
        for (line, words) in [
            ("insula guest start main --vcpus 17", ["17", "16"]),
            ("insula guest start main --vcpus 0", ["vcpu", "16"]),
            ("insula guest start main --memory 4M", ["4M", "memory"]),
            ("insula guest start main --memory lots", ["lots", "512M"]),
            ("insula guest start Main", ["Main", "a-z"]),
            ("insula vps create web --cpus 0", ["cpus", "0.5"]),
            (
                "insula vps create web --cpu-weight 0",
                ["cpu-weight", "10000"],
            ),
            ("insula run --model jail -- true", ["jail", "guest-vps"]),
            ("insula run", ["<CMD>", "Usage"]),
            (
                "insula guest start main --ready-timeout soon",
                ["soon", "10s"],
            ),
        ] {
            let error = parse(line).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{line}: {word} is not in {error}");
            }
        }
    }

    #[test]
    fn what_the_issue_asks_for_parses() {
        for line in [
            "insula run --model guest-vps -- sh -c exit",
            "insula run --model microvm --vcpus 2 --memory 256M -- nproc",
            "insula guest start main --kernel /k --cmdline x=y --template busybox --json",
            "insula guest stop --kill main",
            "insula vps exec --guest g --env A=b --cwd /etc --user nobody web -- true",
            "insula vps exec -t -i web -- sh",
            "insula vps create web --memory 24M --pids 20 --cpus 0.5 --autostart",
            "insula lab run --icount -- true",
            "insula compare --blocks 1 --only sys.null --out /tmp/x",
            "insula image prune --all",
            "insula completions fish",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }
}

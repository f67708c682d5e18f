//! `insula guest`

use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use guest_agent::protocol::Name;
use vmm::config::{MemSize, VcpuCount};
use vmm::guest::Size;

use super::{ColdOption, values};

pub(super) const EXAMPLES: &str = "\
Examples:
  insula guest start                     a guest called main, with 1 CPU and 512 MiB
  insula guest start big --vcpus 4 --memory 4G --disk 20G
  insula guest start test --kernel ./vmlinux --cmdline 'loglevel=7'
  insula guest start --config guest.toml
  insula guest list --json
  insula guest list --memory             what each costs the host in memory
  insula guest console main -f           what its kernel prints, as it prints it
  insula guest start main --profile && insula guest profile main --boot
  insula guest profile main --seconds 10
  insula guest pause main && insula guest resume main
  insula guest snapshot main /var/lib/snapshots/main
  insula guest snapshot main /var/lib/snapshots/main-2 --incremental
  insula guest restore /var/lib/snapshots/main --name copy
  insula guest restore /var/lib/snapshots/main --count 10 --name web
  insula guest stop main

A configuration file has the same names as the options:
  vcpus = 2
  memory = \"1G\"
  disk = \"8G\"
  templates = [\"busybox\"]
  cmdline = \"loglevel=7\"
  ready_timeout = \"30s\"
Options on the command line win over the file.

Files of a guest are in /run/insula/NAME (root) or $XDG_RUNTIME_DIR/insula/NAME, and go with it,
the disk with its VPSs included, unless the disk was given with --data.";

/// What to do with guests.
#[derive(Debug, Subcommand)]
pub(crate) enum GuestCommand {
    /// Start a guest and wait until it is ready
    ///
    /// The second guest of a kind is restored from a snapshot of the first one
    /// as it was when it had booted, in a fraction of the time; see --cold.
    Start(StartOptions),
    /// List the guests; what killed ones left is removed
    #[command(visible_alias = "ls")]
    List {
        /// Show what each guest costs the host in memory, its own memory and
        /// that of its machine process apart
        ///
        /// PSS is what falls to it: what it has alone, and its share of what
        /// it has in common with others.
        #[arg(long)]
        memory: bool,
    },
    /// Show what guests do: processor time, exits and emulated instructions
    Top {
        /// Show it once: the sums since each guest's start
        #[arg(long)]
        once: bool,
        /// Between two looks
        #[arg(long, value_name = "TIME", default_value = "2s", value_parser = values::some_duration)]
        interval: Duration,
    },
    /// Stop guests: their VPSs first, then their kernel
    Stop {
        /// The guests
        #[arg(required_unless_present = "all", value_name = "NAME")]
        names: Vec<Name>,
        /// Every guest
        #[arg(long, conflicts_with = "names")]
        all: bool,
        /// How long a guest may take to stop before it is killed
        #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::duration)]
        timeout: Duration,
        /// Kill at once
        #[arg(long, conflicts_with = "timeout")]
        kill: bool,
    },
    /// Have guests stand still: they keep their memory and use no processor
    ///
    /// To a paused guest no time passes. It goes on with `insula guest resume`;
    /// `insula guest stop` resumes it first, so that it can power off.
    Pause {
        /// The guests
        #[arg(required = true, value_name = "NAME")]
        names: Vec<Name>,
    },
    /// Have paused guests go on
    Resume {
        /// The guests
        #[arg(required = true, value_name = "NAME")]
        names: Vec<Name>,
    },
    /// Take a snapshot of a guest, from which others can be restored
    ///
    /// The directory gets the guest's memory without its zero pages, copies of
    /// the disks that it can write, and the state of its processors and
    /// devices. It comes to be whole or not at all: a snapshot that was there
    /// is replaced only when the new one is complete. The guest stands still
    /// while its memory is written, and goes on.
    Snapshot(TakeOptions),
    /// Restore guests from a snapshot: in milliseconds, each one a machine of
    /// its own
    ///
    /// The guests go on where the snapshot was taken, with processes, memory
    /// and files as they were, but with random numbers, a vsock context
    /// identifier, a host name and a clock of their own. Memory is shared with
    /// the snapshot until it is written to, so the snapshot's files must stay as
    /// they are while its guests run.
    Restore(RestoreOptions),
    /// Show what a guest's kernel prints on its console
    Console {
        /// The guest
        #[arg(default_value = "main")]
        name: Name,
        /// Go on until the guest ends, or Ctrl-C
        #[arg(short, long)]
        follow: bool,
    },
    /// Show what a guest's machine process says
    Log {
        /// The guest
        #[arg(default_value = "main")]
        name: Name,
    },
    /// Show where a guest spends its time, by kernel function
    ///
    /// Every millisecond each of its virtual processors is asked where it is.
    /// One that waits for work counts as being in the kernel's idle function.
    Profile {
        /// The guest
        #[arg(default_value = "main")]
        name: Name,
        /// For how long; Ctrl-C ends it early
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=86_400))]
        seconds: u32,
        /// Show the boot of a guest that was started with --profile instead
        #[arg(long, conflicts_with = "seconds")]
        boot: bool,
        /// How many functions to show
        #[arg(long, value_name = "N", default_value_t = 30)]
        top: usize,
    },
    /// Show one guest: its state, its agent and what its start took
    Status {
        /// The guest
        #[arg(default_value = "main")]
        name: Name,
    },
}

/// `insula guest snapshot`
#[derive(Debug, Clone, Args)]
pub(crate) struct TakeOptions {
    /// The guest
    pub(crate) name: Name,
    /// The directory to make; a snapshot that is there already is replaced
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// Write only what changed since this guest's last snapshot, or since the
    /// one that it was restored from, which must stay where it is
    #[arg(long)]
    pub(crate) incremental: bool,
    /// End the guest with it: nothing happens in it any more that is not in
    /// the snapshot
    #[arg(long)]
    pub(crate) stop: bool,
}

/// `insula guest restore`
#[derive(Debug, Clone, Args)]
pub(crate) struct RestoreOptions {
    /// The snapshot's directory
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// The guest's name; with --count, what the names begin with
    #[arg(long, value_name = "NAME", required = true)]
    pub(crate) name: Name,
    /// Restore so many guests, called NAME-1 and so on
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<NonZeroU16>,
    /// The host name, in place of the guest's name
    #[arg(long, value_name = "NAME", conflicts_with = "count")]
    pub(crate) hostname: Option<Name>,
    /// Load the pages at once that a guest of this snapshot needs first; the
    /// first guest that is restored so finds out which these are
    #[arg(long)]
    pub(crate) prefetch: bool,
    /// Read all of the memory at once, into huge pages where the host has
    /// them: slower to start, faster afterwards, and shared with nobody
    #[arg(long, conflicts_with = "prefetch")]
    pub(crate) huge_pages: bool,
    /// Restore on another model of processor, if it has all features
    #[arg(long)]
    pub(crate) force: bool,
}

/// `insula guest start`
#[derive(Debug, Clone, Args)]
pub(crate) struct StartOptions {
    /// The guest's name
    #[arg(default_value = "main")]
    pub(crate) name: Name,
    /// Sample where the boot spends its time, for `insula guest profile --boot`
    #[arg(long)]
    pub(crate) profile: bool,
    #[command(flatten)]
    pub(crate) start: ColdOption,
    #[command(flatten)]
    pub(crate) machine: MachineOptions,
}

/// What a guest is made of. Everything is optional: what is not said comes
/// from the configuration file, then from the defaults.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct MachineOptions {
    /// Virtual processors, 1 to 16 [default: 1]
    #[arg(long, value_name = "N", value_parser = values::vcpus)]
    pub(crate) vcpus: Option<VcpuCount>,
    /// Memory [default: 512M]
    #[arg(long, value_name = "SIZE", value_parser = values::guest_memory)]
    pub(crate) memory: Option<MemSize>,
    /// Size of the disk with the VPSs' files; takes only the room that is used [default: 4G]
    #[arg(long, value_name = "SIZE")]
    pub(crate) disk: Option<Size>,
    /// Keep the VPSs and their files in this disk image, which is made when
    /// it is not there and stays when the guest stops
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
    /// An ELF kernel (vmlinux) in place of insula's own
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// A template that VPSs can start from; can be given again [default: busybox]
    #[arg(long = "template", value_name = "NAME")]
    pub(crate) templates: Vec<Name>,
    /// Added to the kernel's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) cmdline: Option<String>,
    /// How long the guest may take until it is ready [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = values::some_duration)]
    pub(crate) ready_timeout: Option<Duration>,
    /// Read what is not said here from a TOML or JSON file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use compare::metric::Measurement;
use compare::models::ModelId;
use compare::plan::Profile;

use crate::place::Place;

/// Compares isolation models: the same work in bare processes, in VPSs on the
/// host, in VPSs of one guest, and in a guest each.
#[derive(Debug, Parser)]
#[command(
    name = "insula-compare",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
        insula compare\n  \
        insula compare --only sys.null,start.cold --models process,microvm --blocks 8\n  \
        insula compare --profile full --out results/today --seed 42\n  \
        insula compare report results/today\n\n\
        Exit codes: 0 done, 1 failed, 2 bad command line, 130 interrupted (with a report of what \
        there was)."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) action: Option<Action>,
    #[command(flatten)]
    pub(crate) run: RunOptions,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Render the report of saved samples again.
    Report {
        /// The directory of the result.
        directory: PathBuf,
        /// Print result.json instead of the table.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RunOptions {
    /// How thorough: quick (minutes) or full (hours).
    #[arg(long, default_value = "quick")]
    pub(crate) profile: Profile,
    /// Exactly so many blocks; fewer than 6 are indicative only.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) blocks: Option<u32>,
    /// Only these measurements, by comma: cpu.prime, sys.null, proc.create,
    /// mem.fault, start.cold, start.restore, start.burst, density.mem.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) only: Vec<Measurement>,
    /// Only these models, by comma: process, host-vps, guest-vps, microvm.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) models: Vec<ModelId>,
    /// What the order of everything comes from; printed and recorded.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Where samples and report go [default: compare-results/TIME].
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Print result.json instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
    /// Where to run [default: here if guests can run here, else in the lab].
    #[arg(long, value_name = "PLACE", env = "INSULA_ON")]
    pub(crate) on: Option<Place>,
    /// Only measure, and leave the report to the caller.
    #[arg(long, hide = true)]
    pub(crate) collect: bool,
}

impl RunOptions {
    /// The options for this program in the lab, where the report is not made.
    pub(crate) fn for_lab(&self, seed: u64) -> Vec<String> {
        let mut options = vec![
            format!("--profile={}", self.profile),
            format!("--seed={seed}"),
        ];
        if let Some(blocks) = self.blocks {
            options.push(format!("--blocks={blocks}"));
        }
        options.extend(
            self.only
                .iter()
                .map(|measurement| format!("--only={measurement}")),
        );
        options.extend(self.models.iter().map(|model| format!("--models={model}")));
        options
    }
}

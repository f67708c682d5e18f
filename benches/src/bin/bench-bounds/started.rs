//! Guests started in the lab, and when they reached which step.

use anyhow::{Context, Result};
use compare::stats::median;
use serde_json::Value;

use crate::workbench::Workbench;

/// The name of the guest that is measured.
pub(crate) const GUEST: &str = "bound";

/// What `insula --json` said of a guest that it started.
pub(crate) struct Started(Value);

/// Boots the guest.
const COLD: [&str; 8] = [
    "guest", "start", GUEST, "--cold", "--vcpus", "1", "--memory", "128M",
];

impl Started {
    /// Boots the guest, of one processor and 128 MiB, with these further
    /// options.
    pub(crate) fn cold(bench: &Workbench, more: &[&str]) -> Result<Self> {
        Self::by(bench, &[&COLD, more].concat())
    }

    /// Runs the `insula` command `argv`, which starts a guest.
    pub(crate) fn by(bench: &Workbench, argv: &[&str]) -> Result<Self> {
        let report = bench.run(&[&["insula", "--json"], argv].concat())?;
        serde_json::from_str(&report)
            .map(Self)
            .with_context(|| format!("the report of a started guest is not JSON: {report:?}"))
    }

    /// From one step to another, in million instructions.
    pub(crate) fn between(&self, from: &str, to: &str) -> Result<f64> {
        Ok(self.at(to)? - self.at(from)?)
    }

    fn at(&self, step: &str) -> Result<f64> {
        let ns = self.0["spans"][step].as_f64();
        ns.map(|ns| ns / 1e6)
            .with_context(|| format!("no span {step} in {}", self.0))
    }
}

/// Ends the guest at once.
pub(crate) fn stop(bench: &Workbench, name: &str) -> Result<()> {
    bench
        .run(&["insula", "--quiet", "guest", "stop", name])
        .map(drop)
}

/// The median, with the least and the most.
pub(crate) fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{:.2} ({least:.2} to {most:.2})", middle(values))
}

/// The median.
pub(crate) fn middle(values: &[f64]) -> f64 {
    median(values).unwrap_or(f64::NAN)
}

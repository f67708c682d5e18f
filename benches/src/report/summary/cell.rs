//! The numbers of one metric of one model.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::metric::Metric;
use crate::models::ModelId;
use crate::plan::VERDICT_BLOCKS;
use crate::result::Sample;
use crate::stats::{Estimate, estimate_median, median};

/// One metric of one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cell {
    /// The metric.
    pub metric: Metric,
    /// The model.
    pub model: ModelId,
    /// The metric's unit.
    pub unit: String,
    /// Samples that count.
    pub samples: usize,
    /// Samples that were left out.
    pub excluded: usize,
    /// The median over blocks (of each block's median) with its interval.
    pub estimate: Option<Estimate>,
    /// The same over the blocks' ratios to `process`.
    pub ratio: Option<Ratio>,
}

/// A ratio to `process`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// The median over blocks of the ratio within the block.
    #[serde(flatten)]
    pub estimate: Estimate,
    /// What follows of it.
    pub verdict: Verdict,
}

/// What follows of a ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The whole interval is on the better side of 1.
    Better,
    /// The whole interval is on the worse side of 1.
    Worse,
    /// The interval holds 1.
    NotResolved,
    /// Not given: the host is emulated, or there are too few blocks.
    Withheld,
}

impl Verdict {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::NotResolved => "not resolved",
            Self::Withheld => "",
        }
    }
}

/// Each block's median, by block.
fn block_values(samples: &[Sample], metric: Metric, model: ModelId) -> Vec<(u32, f64)> {
    let mut by_block = BTreeMap::<u32, Vec<f64>>::new();
    for sample in samples
        .iter()
        .filter(|s| (s.metric, s.model) == (metric, model))
    {
        if let Some(value) = sample.valid_value() {
            by_block.entry(sample.block).or_default().push(value);
        }
    }
    by_block
        .into_iter()
        .filter_map(|(block, values)| Some((block, median(&values)?)))
        .collect()
}

/// Makes one; `verdicts` says whether they may be given.
pub(super) fn cell(
    samples: &[Sample],
    metric: Metric,
    model: ModelId,
    seed: u64,
    verdicts: bool,
) -> Cell {
    let mine = || {
        samples
            .iter()
            .filter(|s| (s.metric, s.model) == (metric, model))
    };
    let values = block_values(samples, metric, model);
    let ratio = (model != ModelId::Process)
        .then(|| {
            ratio(
                &values,
                &block_values(samples, metric, ModelId::Process),
                metric,
                seed,
            )
        })
        .flatten()
        .map(|(estimate, verdict)| Ratio {
            estimate,
            verdict: if verdicts { verdict } else { Verdict::Withheld },
        });
    let of_blocks: Vec<f64> = values.iter().map(|(_, value)| *value).collect();
    Cell {
        metric,
        model,
        unit: metric.unit().into(),
        samples: mine()
            .filter(|sample| sample.valid_value().is_some())
            .count(),
        excluded: mine()
            .filter(|sample| sample.validity.why_not().is_some())
            .count(),
        estimate: estimate_median(&of_blocks, seed),
        ratio,
    }
}

/// The ratio within each block that has both.
fn ratio(
    values: &[(u32, f64)],
    baseline: &[(u32, f64)],
    metric: Metric,
    seed: u64,
) -> Option<(Estimate, Verdict)> {
    let ratios: Vec<f64> = values
        .iter()
        .filter_map(|(block, value)| {
            let (_, base) = baseline.iter().find(|(other, _)| other == block)?;
            let ratio = value / base;
            // A memory slope can be nothing or less; its ratio says nothing.
            (ratio.is_finite() && *base > 0.0 && *value > 0.0).then_some(ratio)
        })
        .collect();
    let estimate = estimate_median(&ratios, seed)?;
    let verdict = match estimate.interval {
        Some(interval) if estimate.n >= VERDICT_BLOCKS as usize => {
            let more = interval.low > 1.0;
            let less = interval.high < 1.0;
            match (more, less, metric.more_is_better()) {
                (true, _, true) | (_, true, false) => Verdict::Better,
                (true, _, false) | (_, true, true) => Verdict::Worse,
                _ => Verdict::NotResolved,
            }
        }
        _ => Verdict::Withheld,
    };
    Some((estimate, verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_same_block() {
        // Blocks differ tenfold, models by a factor of two within each.
        let base = [
            (1, 10.0),
            (2, 100.0),
            (3, 1000.0),
            (4, 1.0),
            (5, 5.0),
            (6, 7.0),
            (7, 0.0),
        ];
        let other: Vec<(u32, f64)> = base.iter().rev().map(|(b, v)| (*b, v * 2.0)).collect();
        let (estimate, verdict) = ratio(&other, &base, Metric::SysNull, 1).unwrap();
        assert!((estimate.median - 2.0).abs() < 1e-12);
        assert_eq!((estimate.n, verdict), (6, Verdict::Worse));
        let (_, verdict) = ratio(&other, &base, Metric::CpuPrime, 1).unwrap();
        assert_eq!(verdict, Verdict::Better);
        let (_, few) = ratio(&other[..3], &base, Metric::CpuPrime, 1).unwrap();
        assert_eq!(few, Verdict::Withheld);
        assert!(ratio(&[], &base, Metric::CpuPrime, 1).is_none());
    }
}

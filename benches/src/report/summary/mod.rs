//! The numbers of a report, made of a recording; `result.json` is this.

mod cell;

use serde::Serialize;

use crate::environment::Environment;
use crate::metric::Metric;
use crate::models::{Conditions, ModelId};
use crate::plan::Plan;
use crate::result::{EVENTS, Event, Header, Recording, Sample, UnavailableModel};
use crate::stats::{median, theil_sen};

pub use cell::{Cell, Ratio, Verdict};

/// What `result.json` says it is.
pub const RESULT_FORMAT: &str = "insula-compare/result";
/// Version of `result.json` that this program writes.
pub const RESULT_VERSION: u32 = 2;

/// The numbers of a report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// [`RESULT_FORMAT`].
    pub format: String,
    /// [`RESULT_VERSION`].
    pub version: u32,
    /// Whether the plan was carried out to its end.
    pub complete: bool,
    /// Blocks in which something was measured.
    pub blocks: u32,
    /// What every figure is marked with: `emulated host`, for example.
    pub mark: Option<String>,
    /// Why no verdicts are given, if none are.
    pub no_verdicts: Option<String>,
    /// Metric by model.
    pub cells: Vec<Cell>,
    /// Medians of the events of cold starts.
    pub starts: Vec<Start>,
    /// Medians of the events of restored starts.
    pub restores: Vec<Start>,
    /// What became of bursts.
    pub bursts: Vec<Burst>,
    /// Slopes of host memory over instances.
    pub densities: Vec<Density>,
    /// Samples that were left out of every statistic, and why.
    pub excluded: Vec<Excluded>,
    /// Models that did not run, and why.
    pub unavailable: Vec<UnavailableModel>,
    /// Lines of the recording that could not be read.
    pub unreadable_lines: usize,
    /// What went wrong and did not belong to one sample.
    pub troubles: Vec<String>,
    /// What was to be done.
    pub plan: Plan,
    /// Where it ran.
    pub environment: Environment,
    /// Under which conditions each model ran.
    pub conditions: Vec<Conditions>,
}

/// One model's bursts of one size: medians over the bursts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Burst {
    /// The model.
    pub model: ModelId,
    /// Instances that were asked for at once.
    pub instances: u32,
    /// Milliseconds from the request until the first one's first byte.
    pub first_ms: f64,
    /// Until half of them had written.
    pub middle_ms: f64,
    /// Until the last one had.
    pub last_ms: f64,
    /// Instances over the time until the last, a second.
    pub per_second: f64,
}

/// Medians of the events of one model's starts, in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Start {
    /// The model.
    pub model: ModelId,
    /// Event by event, T0 to T8; `None` for what the model does not have.
    pub median_ms: Vec<Option<f64>>,
}

/// The slope of one model's density, all points of all blocks together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Density {
    /// The model.
    pub model: ModelId,
    /// MiB that the host's available memory falls by with each instance.
    pub mib_per_instance: f64,
    /// Median over blocks of what the model takes before its first instance, in
    /// MiB: a guest that instances share, an agent.
    pub shared_mib: Option<f64>,
    /// Median over blocks of the host's PSS per instance, in MiB.
    pub host_pss_mib: Option<f64>,
    /// Median over blocks of the cgroups' charge per instance, in MiB.
    pub cgroup_mib: Option<f64>,
}

/// A sample that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Excluded {
    /// Its number.
    pub sequence: u64,
    /// Its block.
    pub block: u32,
    /// Its model.
    pub model: ModelId,
    /// Its metric.
    pub metric: Metric,
    /// Why.
    pub why: String,
}

impl Summary {
    /// Makes the numbers.
    pub fn new(recording: &Recording) -> Self {
        let header = &recording.header;
        let samples = &recording.samples;
        let seed = header.plan.seed;
        let host = header.environment.host;
        let blocks = measured_blocks(samples);
        let no_verdicts = if host.is_emulated() {
            Some("the host is emulated: no verdict about hardware follows".to_owned())
        } else if blocks < crate::plan::VERDICT_BLOCKS {
            Some(format!(
                "{blocks} blocks are fewer than {}: indicative, no verdicts",
                crate::plan::VERDICT_BLOCKS
            ))
        } else {
            None
        };
        let mut cells = Vec::new();
        for metric in header.plan.metrics() {
            for &model in &header.plan.models {
                if metric.measurement().applies_to(model) {
                    let verdicts = no_verdicts.is_none();
                    cells.push(cell::cell(samples, metric, model, seed, verdicts));
                }
            }
        }
        Self {
            format: RESULT_FORMAT.into(),
            version: RESULT_VERSION,
            complete: recording.is_complete(),
            blocks,
            mark: host.mark().map(str::to_owned),
            no_verdicts,
            cells,
            starts: of_models(header, |model| start(samples, Metric::StartReturned, model)),
            restores: of_models(header, |model| {
                start(samples, Metric::RestoreFirstByte, model)
            }),
            bursts: header
                .plan
                .bursts
                .iter()
                .flat_map(|&metric| of_models(header, |model| burst(samples, metric, model)))
                .collect(),
            densities: of_models(header, |model| slope(samples, model)),
            excluded: samples.iter().filter_map(excluded).collect(),
            unavailable: header.unavailable.clone(),
            unreadable_lines: recording.unreadable_lines,
            troubles: recording
                .footer
                .as_ref()
                .map(|footer| footer.troubles.clone())
                .unwrap_or_default(),
            plan: header.plan.clone(),
            environment: header.environment.clone(),
            conditions: header.conditions.clone(),
        }
    }

    /// One cell.
    pub fn cell(&self, metric: Metric, model: ModelId) -> Option<&Cell> {
        self.cells
            .iter()
            .find(|cell| (cell.metric, cell.model) == (metric, model))
    }
}

fn measured_blocks(samples: &[Sample]) -> u32 {
    let mut blocks: Vec<u32> = samples
        .iter()
        .filter(|s| s.valid_value().is_some())
        .map(|s| s.block)
        .collect();
    blocks.sort_unstable();
    blocks.dedup();
    blocks.len() as u32
}

fn excluded(sample: &Sample) -> Option<Excluded> {
    let why = sample.validity.why_not()?;
    Some(Excluded {
        sequence: sample.sequence,
        block: sample.block,
        model: sample.model,
        metric: sample.metric,
        why: why.to_owned(),
    })
}

/// What there is of each model, in the order of reports.
fn of_models<T>(header: &Header, of: impl Fn(ModelId) -> Option<T>) -> Vec<T> {
    header
        .plan
        .models
        .iter()
        .filter_map(|&model| of(model))
        .collect()
}

fn burst(samples: &[Sample], metric: Metric, model: ModelId) -> Option<Burst> {
    let instances = metric.burst()?;
    let valid: Vec<&Sample> = samples
        .iter()
        .filter(|s| (s.metric, s.model) == (metric, model) && s.valid_value().is_some())
        .collect();
    let over_bursts = |one: fn(&[u64]) -> Option<&u64>| {
        let values: Vec<f64> = valid
            .iter()
            .filter_map(|sample| Some(*one(&sample.burst_ns)? as f64 / 1e6))
            .collect();
        median(&values)
    };
    let last_ms = over_bursts(<[u64]>::last)?;
    Some(Burst {
        model,
        instances,
        first_ms: over_bursts(<[u64]>::first)?,
        middle_ms: over_bursts(|times| times.get(times.len() / 2))?,
        last_ms,
        per_second: f64::from(instances) * 1e3 / last_ms,
    })
}

fn start(samples: &[Sample], metric: Metric, model: ModelId) -> Option<Start> {
    let waterfalls: Vec<_> = samples
        .iter()
        .filter(|s| (s.metric, s.model) == (metric, model))
        .filter(|s| s.valid_value().is_some())
        .filter_map(|s| s.waterfall)
        .collect();
    if waterfalls.is_empty() {
        return None;
    }
    let median_ms = EVENTS.map(|(event, _, _)| {
        let values: Vec<f64> = waterfalls
            .iter()
            .filter_map(|w| Some(w.get(event)? as f64 / 1e6))
            .collect();
        // An event that only some starts have would be a median of others.
        if values.len() == waterfalls.len() {
            median(&values)
        } else {
            None
        }
    });
    debug_assert!(median_ms[Event::Request as usize].is_some());
    Some(Start {
        model,
        median_ms: median_ms.to_vec(),
    })
}

fn slope(samples: &[Sample], model: ModelId) -> Option<Density> {
    let mib = f64::from(1 << 20);
    let valid: Vec<&Sample> = samples
        .iter()
        .filter(|s| (s.metric, s.model) == (Metric::DensityMem, model))
        .filter(|s| s.valid_value().is_some())
        .collect();
    let slopes: Vec<f64> = valid.iter().filter_map(|s| s.valid_value()).collect();
    let per_instance = |bytes: fn(&crate::result::DensityPoint) -> Option<u64>| {
        let slopes: Vec<f64> = valid
            .iter()
            .filter_map(|sample| {
                let points: Vec<(f64, f64)> = sample
                    .density
                    .iter()
                    .filter_map(|p| Some((f64::from(p.instances), bytes(p)? as f64)))
                    .collect();
                Some(theil_sen(&points)?.slope / mib)
            })
            .collect();
        median(&slopes)
    };
    let shared: Vec<f64> = valid
        .iter()
        .filter_map(|sample| Some(sample.shared_bytes? as f64 / mib))
        .collect();
    Some(Density {
        model,
        mib_per_instance: median(&slopes)?,
        shared_mib: median(&shared),
        host_pss_mib: per_instance(|point| point.host_pss_bytes),
        cgroup_mib: per_instance(|point| point.cgroup_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::HostKind;
    use crate::testing::recording;

    #[test]
    fn excluded_samples_are_listed_and_left_out() {
        let summary = Summary::new(&recording());
        assert_eq!(summary.excluded.len(), 2);
        let left_out: usize = summary.cells.iter().map(|cell| cell.excluded).sum();
        assert_eq!(left_out, 2);
        assert!(
            summary
                .excluded
                .iter()
                .any(|sample| sample.why.contains("garbage"))
        );
        assert!(!summary.complete);
        assert_eq!(summary.blocks, 8);
    }

    #[test]
    fn an_emulated_host_gets_no_verdict() {
        let mut recording = recording();
        let verdicts = |summary: &Summary| {
            summary
                .cells
                .iter()
                .filter_map(|cell| cell.ratio)
                .filter(|ratio| ratio.verdict != Verdict::Withheld)
                .count()
        };
        assert!(verdicts(&Summary::new(&recording)) > 0);
        recording.header.environment.host = HostKind::Emulated;
        let summary = Summary::new(&recording);
        assert_eq!(verdicts(&summary), 0);
        assert!(summary.mark.unwrap().contains("emulated host"));
        assert!(summary.no_verdicts.unwrap().contains("emulated"));
    }

    #[test]
    fn few_blocks_are_indicative() {
        let mut recording = recording();
        recording.samples.retain(|sample| sample.block <= 5);
        let summary = Summary::new(&recording);
        assert!(summary.no_verdicts.unwrap().contains("indicative"));
    }

    #[test]
    fn nothing_measured_is_no_trouble() {
        let mut recording = recording();
        recording.samples.clear();
        let summary = Summary::new(&recording);
        assert!(
            summary
                .cells
                .iter()
                .all(|cell| cell.estimate.is_none() && cell.ratio.is_none())
        );
        assert!(summary.starts.is_empty() && summary.densities.is_empty());
        assert!(summary.restores.is_empty() && summary.bursts.is_empty());
    }

    #[test]
    fn restores_are_of_guests_and_bursts_of_all() {
        let summary = Summary::new(&recording());
        let restored: Vec<ModelId> = summary.restores.iter().map(|start| start.model).collect();
        assert_eq!(restored, [ModelId::GuestVps, ModelId::Microvm]);
        assert!(
            summary
                .cell(Metric::RestoreFirstByte, ModelId::Process)
                .is_none()
        );
        assert_eq!(summary.bursts.len(), 3 * ModelId::ALL.len());
        let ten = summary
            .bursts
            .iter()
            .find(|burst| (burst.model, burst.instances) == (ModelId::Microvm, 10))
            .unwrap();
        assert_eq!(
            (ten.first_ms, ten.middle_ms, ten.last_ms),
            (250.0, 255.0, 259.0)
        );
        assert!((ten.per_second - 38.61).abs() < 0.01);
    }

    #[test]
    fn densities_have_their_slopes() {
        let summary = Summary::new(&recording());
        let process = summary
            .densities
            .iter()
            .find(|d| d.model == ModelId::Process)
            .unwrap();
        assert_eq!(process.shared_mib, Some(5.0));
        assert_eq!(process.host_pss_mib, Some(1.0));
        assert_eq!(process.cgroup_mib, None);
    }
}

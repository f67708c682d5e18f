//! What a run is to do, in which order, and how long it will take.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::environment::HostKind;
use crate::metric::{Measurement, Metric};
use crate::models::{InstanceLimits, ModelId};
use crate::name::find;
use crate::stats::Random;

/// Blocks from which a verdict is possible at all: a paired permutation test
/// of five can't get below p = 0.05.
pub const VERDICT_BLOCKS: u32 = 6;

/// How thorough a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Minutes.
    Quick,
    /// An hour or more.
    Full,
}

impl Profile {
    const ALL: [Self; 2] = [Self::Quick, Self::Full];

    fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Profile {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        find("profile", &Self::ALL, Self::name, name)
    }
}

/// What a run is to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// How thorough.
    pub profile: Profile,
    /// What all randomness comes from.
    pub seed: u64,
    /// The models that run, in the order of reports.
    pub models: Vec<ModelId>,
    /// What is measured.
    pub measurements: Vec<Measurement>,
    /// Blocks: in each, every model once.
    pub blocks: u32,
    /// Milliseconds that one piece of work takes in `process`.
    pub work_ms: u64,
    /// Cold starts of each model in each block.
    pub cold_starts: u32,
    /// Times that `density.mem` launches [some](ModelId::density_step) instances
    /// and looks at the host's memory.
    pub density_steps: u32,
    /// Blocks with `density.mem`: the first so many.
    pub density_blocks: u32,
    /// Limits of every instance.
    pub limits: InstanceLimits,
    /// The fixed work of each workload, found once on `process` and the same
    /// for every model.
    pub work: BTreeMap<Metric, u64>,
    /// What was cut to fit the time, in words.
    pub adjustments: Vec<String>,
    /// Seconds that it should take.
    pub estimate_s: u64,
}

/// What one model's pieces took in the warm-up, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Bringing up and ending what instances share.
    pub open_s: f64,
    /// Launching and destroying an instance.
    pub launch_s: f64,
    /// Executing a program that does nothing.
    pub exec_s: f64,
    /// How much longer work takes than in `process`.
    pub slowdown: f64,
}

/// What the caller asked for; the rest is the profile's.
#[derive(Debug, Clone, PartialEq)]
pub struct Wishes {
    /// How thorough.
    pub profile: Profile,
    /// What all randomness comes from.
    pub seed: u64,
    /// The models that run.
    pub models: Vec<ModelId>,
    /// What is measured.
    pub measurements: Vec<Measurement>,
    /// Exactly so many blocks.
    pub blocks: Option<u32>,
}

impl Plan {
    /// The profile's plan for a host, before anything is known of it.
    pub fn new(wishes: &Wishes, host: HostKind) -> Self {
        let emulated = host.is_emulated();
        let (blocks, work_ms, cold_starts, density_steps, density_blocks) =
            match (wishes.profile, emulated) {
                (Profile::Quick, false) => (8, 400, 3, 8, 3),
                (Profile::Quick, true) => (6, 1000, 2, 6, 3),
                (Profile::Full, false) => (16, 2000, 10, 16, 6),
                (Profile::Full, true) => (12, 2000, 5, 8, 6),
            };
        let mut adjustments = Vec::new();
        if emulated {
            adjustments.push("the host is emulated: fewer repetitions than on hardware".to_owned());
        }
        Self {
            profile: wishes.profile,
            seed: wishes.seed,
            models: wishes.models.clone(),
            measurements: wishes.measurements.clone(),
            blocks: wishes.blocks.unwrap_or(blocks),
            work_ms,
            cold_starts,
            density_steps,
            density_blocks: density_blocks.min(wishes.blocks.unwrap_or(blocks)),
            limits: InstanceLimits::default(),
            work: BTreeMap::new(),
            adjustments,
            estimate_s: 0,
        }
    }

    /// Seconds that a run of this profile may take.
    fn budget_s(&self) -> f64 {
        match self.profile {
            Profile::Quick => 11.0 * 60.0,
            Profile::Full => 4.0 * 3600.0,
        }
    }

    /// Cuts the plan to its time, by what the pieces took in the warm-up.
    /// Blocks that the caller asked for (`fixed_blocks`) are not cut.
    pub fn fit(&mut self, costs: &BTreeMap<ModelId, Cost>, fixed_blocks: bool, spent_s: f64) {
        let budget = self.budget_s() - spent_s;
        let before = [
            self.blocks,
            self.cold_starts,
            self.density_steps,
            self.density_blocks,
        ];
        loop {
            let estimate = self.seconds(costs);
            self.estimate_s = estimate.ceil() as u64;
            if estimate <= budget {
                break;
            }
            // Blocks last: they carry the statistics.
            if self.cold_starts > 1 && self.measures(Measurement::StartCold) {
                self.cold_starts -= 1;
            } else if self.density_steps > 3 && self.measures(Measurement::DensityMem) {
                self.density_steps -= 1;
            } else if self.density_blocks > 1 && self.measures(Measurement::DensityMem) {
                self.density_blocks -= 1;
            } else if !fixed_blocks && self.blocks > 3 {
                self.blocks -= 1;
            } else {
                self.adjustments.push(format!(
                    "takes longer than the {:.0} minutes of its profile: nothing is left to cut",
                    self.budget_s() / 60.0
                ));
                break;
            }
        }
        self.density_blocks = self.density_blocks.min(self.blocks);
        let after = [
            ("blocks", self.blocks),
            ("cold starts of a model in a block", self.cold_starts),
            ("steps of density.mem", self.density_steps),
            ("blocks with density.mem", self.density_blocks),
        ];
        for ((what, after), before) in after.into_iter().zip(before) {
            if before != after {
                self.adjustments.push(format!(
                    "{after} {what} instead of {before}, to fit the time"
                ));
            }
        }
    }

    /// Seconds that the plan takes at these costs.
    pub fn seconds(&self, costs: &BTreeMap<ModelId, Cost>) -> f64 {
        let work = self.work_metrics().len() as f64;
        self.models
            .iter()
            .map(|model| {
                let cost = costs.get(model).copied().unwrap_or_default();
                let steady = if work > 0.0 {
                    let once = self.work_ms as f64 / 1e3 * cost.slowdown.max(1.0);
                    cost.launch_s + cost.exec_s + work * (once + 3.0 * cost.exec_s)
                } else {
                    0.0
                };
                let cold = if self.measures(Measurement::StartCold) {
                    f64::from(self.cold_starts) * (cost.launch_s + cost.exec_s)
                } else {
                    0.0
                };
                let density = if self.measures(Measurement::DensityMem) {
                    let launches = f64::from(model.density_step()) * cost.launch_s;
                    f64::from(self.density_steps) * (launches + SETTLE_S) + cost.open_s
                } else {
                    0.0
                };
                f64::from(self.blocks) * (cost.open_s + steady + cold)
                    + f64::from(self.density_blocks) * density
            })
            .sum()
    }

    /// Whether it measures that.
    pub fn measures(&self, measurement: Measurement) -> bool {
        self.measurements.contains(&measurement)
    }

    /// The workloads to run.
    pub fn work_metrics(&self) -> Vec<Metric> {
        Metric::WORK
            .into_iter()
            .filter(|metric| self.measures(metric.measurement()))
            .collect()
    }

    /// The metrics that it yields.
    pub fn metrics(&self) -> Vec<Metric> {
        Metric::ALL
            .into_iter()
            .filter(|metric| self.measures(metric.measurement()))
            .collect()
    }

    /// The order of every block: all models once in a random order, and within
    /// each the workloads in a random order.
    pub fn order(&self) -> Vec<Vec<Visit>> {
        let mut random = Random::for_purpose(self.seed, "order");
        (0..self.blocks)
            .map(|_| {
                let mut models = self.models.clone();
                random.shuffle(&mut models);
                models
                    .into_iter()
                    .map(|model| {
                        let mut work = self.work_metrics();
                        random.shuffle(&mut work);
                        Visit { model, work }
                    })
                    .collect()
            })
            .collect()
    }

    /// Fewer blocks than a verdict needs.
    pub fn is_indicative(&self) -> bool {
        self.blocks < VERDICT_BLOCKS
    }
}

/// Seconds that the host's memory is given to settle after a launch.
pub const SETTLE_S: f64 = 0.3;

/// One model's turn in a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visit {
    /// The model.
    pub model: ModelId,
    /// The workloads in their order.
    pub work: Vec<Metric>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(seed: u64, blocks: Option<u32>) -> Wishes {
        Wishes {
            profile: Profile::Quick,
            seed,
            models: ModelId::ALL.to_vec(),
            measurements: Measurement::ALL.to_vec(),
            blocks,
        }
    }

    fn costs(launch_s: f64) -> BTreeMap<ModelId, Cost> {
        ModelId::ALL
            .into_iter()
            .map(|model| {
                (
                    model,
                    Cost {
                        open_s: launch_s,
                        launch_s,
                        exec_s: 0.05,
                        slowdown: 1.2,
                    },
                )
            })
            .collect()
    }

    #[test]
    fn every_block_has_every_model_and_workload_once() {
        let plan = Plan::new(&wishes(5, Some(40)), HostKind::BareMetal);
        let order = plan.order();
        assert_eq!(order.len(), 40);
        for block in &order {
            let mut models: Vec<_> = block.iter().map(|visit| visit.model).collect();
            models.sort();
            assert_eq!(models, ModelId::ALL);
            for visit in block {
                let mut work = visit.work.clone();
                work.sort();
                assert_eq!(work, Metric::WORK);
            }
        }
        // Each model comes first sometimes.
        for model in ModelId::ALL {
            assert!(order.iter().any(|block| block[0].model == model));
        }
    }

    #[test]
    fn the_order_is_the_seeds() {
        let plan = |seed| Plan::new(&wishes(seed, Some(12)), HostKind::BareMetal).order();
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1), plan(2));
    }

    #[test]
    fn a_slow_host_gets_less_to_do_and_is_told_so() {
        let mut plan = Plan::new(&wishes(1, None), HostKind::Emulated);
        plan.fit(&costs(3.0), false, 60.0);
        assert!(plan.estimate_s <= 11 * 60 - 60, "{}", plan.estimate_s);
        let mut slower = Plan::new(&wishes(1, None), HostKind::Emulated);
        slower.fit(&costs(30.0), false, 0.0);
        assert_eq!((slower.blocks, slower.cold_starts), (3, 1));
        assert!(slower.is_indicative());
        assert!(slower.adjustments.len() > 1, "{:?}", slower.adjustments);
        // Blocks that were asked for are kept.
        let mut asked = Plan::new(&wishes(1, Some(9)), HostKind::Emulated);
        asked.fit(&costs(30.0), true, 0.0);
        assert_eq!(asked.blocks, 9);
        assert!(
            asked
                .adjustments
                .iter()
                .any(|text| text.contains("nothing is left to cut"))
        );
    }

    #[test]
    fn a_fast_host_does_all() {
        let mut plan = Plan::new(&wishes(1, None), HostKind::BareMetal);
        plan.fit(&costs(0.2), false, 5.0);
        assert_eq!((plan.blocks, plan.cold_starts), (8, 3));
        assert!(plan.adjustments.is_empty());
        assert!(!plan.is_indicative());
    }
}

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
    /// Milliseconds that one piece of work may take in a guest, where guests' kernels
    /// are emulated: there what a process does in a second takes a guest an hour. The
    /// work is cut to that for every model.
    #[serde(default)]
    pub guest_work_ms: Option<u64>,
    /// Cold starts of each model in each block.
    pub cold_starts: u32,
    /// Restored starts of each model that has snapshots, in each block.
    #[serde(default)]
    pub restores: u32,
    /// The bursts of `start.burst`.
    #[serde(default)]
    pub bursts: Vec<Metric>,
    /// Blocks with `start.burst`: the first so many.
    #[serde(default)]
    pub burst_blocks: u32,
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
    /// Making a snapshot, once; nothing where there is none.
    pub snapshot_s: f64,
    /// A burst of one, from nothing to nothing.
    pub burst_s: f64,
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
        // Blocks; milliseconds of work; starts of either kind in a block; steps
        // of density.mem; blocks with it and with bursts.
        let (blocks, work_ms, starts, density_steps, some_blocks) = match (wishes.profile, emulated)
        {
            (Profile::Quick, false) => (8, 400, 3, 8, 3),
            (Profile::Quick, true) => (6, 1000, 2, 6, 3),
            (Profile::Full, false) => (16, 2000, 10, 16, 6),
            (Profile::Full, true) => (12, 2000, 5, 8, 6),
        };
        let blocks = wishes.blocks.unwrap_or(blocks);
        let mut adjustments = Vec::new();
        if emulated {
            adjustments.push("the host is emulated: fewer repetitions than on hardware".to_owned());
        }
        Self {
            profile: wishes.profile,
            seed: wishes.seed,
            models: wishes.models.clone(),
            measurements: wishes.measurements.clone(),
            blocks,
            work_ms,
            guest_work_ms: (host == HostKind::Pvm).then_some(GUEST_WORK_MS),
            cold_starts: starts,
            restores: starts,
            bursts: Metric::BURSTS.to_vec(),
            burst_blocks: some_blocks.min(blocks),
            density_steps,
            density_blocks: some_blocks.min(blocks),
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

    /// Cuts the work of a workload to what a guest does in its time, and says so.
    pub fn cut_work(&mut self, metric: Metric, amount: u64) {
        let Some(work) = self.work.get_mut(&metric).filter(|work| **work > amount) else {
            return;
        };
        *work = amount;
        let short = format!("{metric}: short work, ");
        self.adjustments.retain(|text| !text.starts_with(&short));
        self.adjustments.push(format!(
            "{short}so that it ends in guests, too, whose kernels are emulated: {amount}, for \
             every model"
        ));
    }

    /// Leaves out the bursts for which the host has no room, and says so.
    pub fn fit_memory(&mut self, available_bytes: u64) {
        let available_mib = available_bytes >> 20;
        if !self.measures(Measurement::StartBurst) {
            return;
        }
        let adjustments = &mut self.adjustments;
        self.bursts.retain(|metric| {
            let needed_mib = u64::from(metric.burst().unwrap_or(0)) * BURST_INSTANCE_MIB;
            let fits = needed_mib <= available_mib;
            if !fits {
                adjustments.push(format!(
                    "{metric} is left out: so many guests may take {needed_mib} MiB, and the host \
                     has {available_mib} MiB to give"
                ));
            }
            fits
        });
    }

    /// Cuts the plan to its time, by what the pieces took in the warm-up.
    /// Blocks that the caller asked for (`fixed_blocks`) are not cut.
    pub fn fit(&mut self, costs: &BTreeMap<ModelId, Cost>, fixed_blocks: bool, spent_s: f64) {
        let budget = self.budget_s() - spent_s;
        let before = self.amounts();
        loop {
            let estimate = self.seconds(costs);
            self.estimate_s = estimate.ceil() as u64;
            if estimate <= budget {
                break;
            }
            if !self.cut(fixed_blocks) {
                self.adjustments.push(format!(
                    "takes longer than the {:.0} minutes of its profile: nothing is left to cut",
                    self.budget_s() / 60.0
                ));
                break;
            }
        }
        self.density_blocks = self.density_blocks.min(self.blocks);
        self.burst_blocks = self.burst_blocks.min(self.blocks);
        for ((what, after), (_, before)) in self.amounts().into_iter().zip(before) {
            if before != after {
                self.adjustments.push(format!(
                    "{after} {what} instead of {before}, to fit the time"
                ));
            }
        }
    }

    /// What can be cut, in words.
    fn amounts(&self) -> [(&'static str, u32); 7] {
        let largest = self.bursts.last().and_then(|metric| metric.burst());
        [
            ("blocks", self.blocks),
            ("cold starts of a model in a block", self.cold_starts),
            ("restored starts of a model in a block", self.restores),
            ("blocks with start.burst", self.burst_blocks),
            ("instances in the largest burst", largest.unwrap_or(0)),
            ("steps of density.mem", self.density_steps),
            ("blocks with density.mem", self.density_blocks),
        ]
    }

    /// Cuts one piece; whether there was one to cut.
    fn cut(&mut self, fixed_blocks: bool) -> bool {
        let cold = self.measures(Measurement::StartCold);
        let restore = self.measures(Measurement::StartRestore);
        let burst = self.measures(Measurement::StartBurst);
        let density = self.measures(Measurement::DensityMem);
        // Blocks late: they carry the statistics. The largest burst last: it
        // is measured once, and nothing else says what it says.
        if cold && self.cold_starts > 1 {
            self.cold_starts -= 1;
        } else if restore && self.restores > 1 {
            self.restores -= 1;
        } else if burst && self.burst_blocks > 1 {
            self.burst_blocks -= 1;
        } else if density && self.density_steps > 3 {
            self.density_steps -= 1;
        } else if density && self.density_blocks > 1 {
            self.density_blocks -= 1;
        } else if !fixed_blocks && self.blocks > 3 {
            self.blocks -= 1;
        } else if burst && self.bursts.len() > 1 {
            self.bursts.pop();
        } else {
            return false;
        }
        true
    }

    /// Seconds that the plan takes at these costs.
    pub fn seconds(&self, costs: &BTreeMap<ModelId, Cost>) -> f64 {
        self.models
            .iter()
            .map(|model| self.model_seconds(*model, costs.get(model).copied().unwrap_or_default()))
            .sum()
    }

    fn model_seconds(&self, model: ModelId, cost: Cost) -> f64 {
        let work = self.work_metrics().len() as f64;
        let mut block = cost.open_s;
        let mut whole = 0.0;
        if work > 0.0 {
            let once = self.work_ms as f64 / 1e3 * cost.slowdown.max(1.0);
            block += cost.launch_s + cost.exec_s + work * (once + 3.0 * cost.exec_s);
        }
        if self.measures_of(model, Measurement::StartCold) {
            block += f64::from(self.cold_starts) * (cost.launch_s + cost.exec_s);
        }
        if self.measures_of(model, Measurement::StartRestore) {
            whole += cost.snapshot_s;
            block += f64::from(self.restores) * cost.burst_s;
        }
        if self.measures(Measurement::StartBurst) {
            let instances: u32 = self.bursts.iter().filter_map(|metric| metric.burst()).sum();
            whole += f64::from(self.burst_blocks) * f64::from(instances) * cost.burst_s;
        }
        if self.measures(Measurement::DensityMem) {
            let launches = f64::from(model.density_step()) * cost.launch_s;
            let steps = f64::from(self.density_steps) * (launches + SETTLE_S);
            whole += f64::from(self.density_blocks) * (steps + cost.open_s);
        }
        f64::from(self.blocks) * block + whole
    }

    /// Samples of that metric that this model yields in that block.
    pub fn expects(&self, block: u32, model: ModelId, metric: Metric) -> u32 {
        if !self.measures_of(model, metric.measurement()) {
            return 0;
        }
        match metric.measurement() {
            Measurement::StartCold => self.cold_starts,
            Measurement::StartRestore => self.restores,
            Measurement::StartBurst => {
                u32::from(block <= self.burst_blocks && self.bursts.contains(&metric))
            }
            Measurement::DensityMem => u32::from(block <= self.density_blocks),
            Measurement::CpuPrime
            | Measurement::SysNull
            | Measurement::ProcCreate
            | Measurement::MemFault => 1,
        }
    }

    /// Whether it measures that of this model.
    pub fn measures_of(&self, model: ModelId, measurement: Measurement) -> bool {
        self.measures(measurement) && measurement.applies_to(model)
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
            .filter(|metric| metric.burst().is_none() || self.bursts.contains(metric))
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

/// MiB of the host's memory that an instance of a burst may take: a restored
/// guest takes the pages that it touches, and its machine process.
const BURST_INSTANCE_MIB: u64 = 24;

/// [`Plan::guest_work_ms`] on PVM hosts.
const GUEST_WORK_MS: u64 = 3000;

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
                        snapshot_s: launch_s,
                        burst_s: launch_s / 10.0,
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
        assert_eq!((slower.restores, slower.burst_blocks), (1, 1));
        assert_eq!(slower.bursts, [Metric::Burst1]);
        assert!(!slower.metrics().contains(&Metric::Burst50));
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
    fn work_that_guests_take_too_long_for_is_cut_on_a_pvm_host() {
        let plan = |host| Plan::new(&wishes(1, None), host);
        assert_eq!(plan(HostKind::Emulated).guest_work_ms, None);
        let mut plan = plan(HostKind::Pvm);
        assert_eq!(plan.guest_work_ms, Some(GUEST_WORK_MS));
        plan.work.insert(Metric::SysNull, 9_000_000);
        for guest in [5000, 4000, 6000] {
            plan.cut_work(Metric::SysNull, guest);
        }
        assert_eq!(plan.work[&Metric::SysNull], 4000);
        let said: Vec<_> = plan
            .adjustments
            .iter()
            .filter(|text| text.contains("sys.null"))
            .collect();
        assert_eq!(said.len(), 1, "{:?}", plan.adjustments);
        assert!(said[0].contains("4000, for every model"), "{said:?}");
    }

    #[test]
    fn a_small_host_gets_small_bursts_and_is_told_so() {
        let mut plan = Plan::new(&wishes(1, None), HostKind::BareMetal);
        plan.fit_memory(4 << 30);
        assert_eq!(plan.bursts, Metric::BURSTS);
        plan.fit_memory(600 << 20);
        assert_eq!(plan.bursts, [Metric::Burst1, Metric::Burst10]);
        assert!(plan.adjustments[0].contains("start.burst/50 is left out"));
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

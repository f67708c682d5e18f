//! One sample.

use serde::{Deserialize, Serialize};

use super::waterfall::Waterfall;
use crate::metric::Metric;
use crate::models::ModelId;

/// One measured number, or what came instead of it. Samples are never
/// dropped: what is not valid is marked, and says why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Counts up by one in a run.
    pub sequence: u64,
    /// Block, from 1. 0 is the warm-up before the first.
    pub block: u32,
    /// The model's place in its block's random order, from 0.
    pub position: u32,
    /// The model.
    pub model: ModelId,
    /// The metric.
    pub metric: Metric,
    /// The value in the metric's unit; absent when there was none.
    pub value: Option<f64>,
    /// Whether it counts.
    pub validity: Validity,
    /// Milliseconds since the Unix epoch when it was taken.
    pub at_unix_ms: u64,
    /// What the host saw, where a workload ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<Outside>,
    /// The value by the instance's own clock, for comparison only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside_value: Option<f64>,
    /// The events of a start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waterfall: Option<Waterfall>,
    /// When each instance of a burst had written its first byte, in
    /// nanoseconds after the request for all of them; the earliest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub burst_ns: Vec<u64>,
    /// The points that a slope was made from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub density: Vec<DensityPoint>,
    /// What the model took of the host's available memory before its first
    /// instance (a guest that instances share, an agent), in bytes; noise may
    /// make it negative.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_bytes: Option<i64>,
    /// Things worth knowing that do not make it invalid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

/// Whether a sample counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", content = "why", rename_all = "snake_case")]
pub enum Validity {
    /// It counts.
    Valid,
    /// It is kept and left out of every statistic.
    Excluded(String),
}

impl Validity {
    /// Why it does not count.
    pub fn why_not(&self) -> Option<&str> {
        match self {
            Self::Valid => None,
            Self::Excluded(why) => Some(why),
        }
    }
}

/// What the host measured of a fixed piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outside {
    /// From asking for the process to learning of its exit, in nanoseconds.
    pub whole_ns: u64,
    /// The same with no work to do, which is taken off.
    pub empty_ns: u64,
    /// Operations done.
    pub operations: u64,
}

/// The host's memory with so many instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DensityPoint {
    /// Instances that run.
    pub instances: u32,
    /// The host's `MemAvailable`, in bytes.
    pub available_bytes: u64,
    /// Proportional set size of the processes that carry the instances on the
    /// host (VMMs; for `process` and VPSs the programs), in bytes.
    pub host_pss_bytes: Option<u64>,
    /// What the instances' cgroups are charged, in bytes.
    pub cgroup_bytes: Option<u64>,
}

impl Sample {
    /// A sample that nothing is known of yet.
    pub fn blank(model: ModelId, metric: Metric) -> Self {
        Self {
            sequence: 0,
            block: 0,
            position: 0,
            model,
            metric,
            value: None,
            validity: Validity::Valid,
            at_unix_ms: 0,
            outside: None,
            inside_value: None,
            waterfall: None,
            burst_ns: Vec::new(),
            density: Vec::new(),
            shared_bytes: None,
            remarks: Vec::new(),
        }
    }

    /// The value, if it counts.
    pub fn valid_value(&self) -> Option<f64> {
        match self.validity {
            Validity::Valid => self.value.filter(|value| value.is_finite()),
            Validity::Excluded(_) => None,
        }
    }

    /// Marks the sample when its value is missing, not a number, or outside
    /// what the metric can be.
    pub fn check_range(&mut self) {
        if self.validity != Validity::Valid {
            return;
        }
        let (least, most) = self.metric.plausible();
        let unit = self.metric.unit();
        self.validity = match self.value {
            None => Validity::Excluded("no value".into()),
            Some(value) if !value.is_finite() => {
                self.value = None; // JSON has no NaN
                Validity::Excluded(format!("{value} is not a number"))
            }
            Some(value) if !(least..=most).contains(&value) => Validity::Excluded(format!(
                "{value} {unit} is not plausible: {least} to {most} is"
            )),
            Some(_) => Validity::Valid,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(value: Option<f64>) -> Sample {
        Sample {
            value,
            ..Sample::blank(ModelId::Process, Metric::SysNull)
        }
    }

    #[test]
    fn odd_values_are_kept_and_marked() {
        for (value, word) in [
            (None, "no value"),
            (Some(f64::NAN), "not a number"),
            (Some(f64::INFINITY), "not a number"),
            (Some(-3.0), "not plausible"),
            (Some(1e12), "not plausible"),
        ] {
            let mut sample = sample(value);
            sample.check_range();
            assert!(
                sample.validity.why_not().unwrap().contains(word),
                "{value:?}"
            );
            assert_eq!(sample.valid_value(), None);
            // It survives the file.
            let json = serde_json::to_string(&sample).unwrap();
            assert_eq!(serde_json::from_str::<Sample>(&json).unwrap(), sample);
        }
        let mut good = sample(Some(300.0));
        good.check_range();
        assert_eq!(good.valid_value(), Some(300.0));
    }
}

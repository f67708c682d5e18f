//! Measuring: what is done with an instance, and the sample that comes of it.

mod density;
mod start;
mod work;

pub use density::density;
pub use start::{burst, cold_start, restored_start};
pub use work::{WorkloadLine, calibrate, parse_line, work};

use crate::metric::Metric;
use crate::models::ModelId;
use crate::result::{Sample, Validity};

/// Where in a run a sample belongs.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Block, from 1.
    pub block: u32,
    /// The model's place in its block.
    pub position: u32,
    /// The model.
    pub model: ModelId,
}

impl Place {
    /// A sample of this place without a value yet.
    fn sample(self, metric: Metric) -> Sample {
        Sample {
            block: self.block,
            position: self.position,
            at_unix_ms: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |since| since.as_millis() as u64),
            ..Sample::blank(self.model, metric)
        }
    }

    /// A sample that came to nothing.
    pub fn failed(self, metric: Metric, why: impl std::fmt::Display) -> Sample {
        let mut sample = self.sample(metric);
        sample.validity = Validity::Excluded(why.to_string());
        sample
    }
}

//! Cold starts: an instance for one short program, from nothing to nothing.

use super::Place;
use crate::metric::Metric;
use crate::models::{InstanceLimits, Model, WORKLOAD};
use crate::result::{Event, Sample, Validity};

/// What the program prints.
const GREETING: &[u8] = b"hello\n";

/// Starts an instance, lets it print a line, and ends it; a sample for the
/// first byte and one for everything returned, both with all events.
pub fn cold_start(model: &mut dyn Model, place: Place, limits: &InstanceLimits) -> Vec<Sample> {
    let metrics = [
        (Metric::StartFirstByte, Event::FirstByte),
        (Metric::StartReturned, Event::Returned),
    ];
    let execution = match model.run_once(limits, &[WORKLOAD, "hello"]) {
        Ok(execution) => execution,
        Err(error) => {
            return metrics
                .map(|(metric, _)| place.failed(metric, &error))
                .to_vec();
        }
    };
    let wrong = if execution.exit_code != 0 {
        Some(format!("the program exited with {}", execution.exit_code))
    } else if execution.stdout != GREETING {
        let said = String::from_utf8_lossy(&execution.stdout);
        Some(format!("the program printed {said:?}"))
    } else {
        execution
            .waterfall
            .disorder()
            .map(|event| format!("{event} is before an earlier event"))
    };
    metrics
        .map(|(metric, event)| {
            let mut sample = place.sample(metric);
            sample.value = execution
                .waterfall
                .get(event)
                .map(|ns| metric.from_ns(ns as f64));
            sample.waterfall = Some(execution.waterfall);
            if let Some(wrong) = &wrong {
                sample.validity = Validity::Excluded(wrong.clone());
            }
            sample.check_range();
            sample
        })
        .to_vec()
}

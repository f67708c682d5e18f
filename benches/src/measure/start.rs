//! Starts: instances for one short program, from nothing to nothing; cold,
//! restored from a snapshot, and many at once.

use super::Place;
use crate::metric::Metric;
use crate::models::{Execution, InstanceLimits, Model, ModelError, WORKLOAD};
use crate::result::{Event, Sample, Validity};

/// What the program prints.
const GREETING: &[u8] = b"hello\n";

/// Starts an instance, lets it print a line, and ends it; a sample for the
/// first byte and one for everything returned, both with all events.
pub fn cold_start(model: &mut dyn Model, place: Place, limits: &InstanceLimits) -> Vec<Sample> {
    let execution = model.run_once(limits, &[WORKLOAD, "hello"]);
    let metrics = [
        (Metric::StartFirstByte, Event::FirstByte),
        (Metric::StartReturned, Event::Returned),
    ];
    metrics
        .map(|(metric, event)| sample(place, metric, event, execution.as_ref()))
        .to_vec()
}

/// The same with what carries the instance restored from the model's
/// snapshot, which is taken first where there is none; its first byte.
pub fn restored_start(model: &mut dyn Model, place: Place, limits: &InstanceLimits) -> Sample {
    let execution = model
        .take_snapshot(limits)
        .and_then(|()| model.run_restored(limits, &[WORKLOAD, "hello"]));
    sample(
        place,
        Metric::RestoreFirstByte,
        Event::FirstByte,
        execution.as_ref(),
    )
}

/// Starts as many instances at once as `metric` says, each of which prints a
/// line; the sample's value is when the last one's arrived.
pub fn burst(
    model: &mut dyn Model,
    place: Place,
    metric: Metric,
    limits: &InstanceLimits,
) -> Sample {
    let Some(count) = metric.burst() else {
        return place.failed(metric, "no burst");
    };
    let executions = match model
        .take_snapshot(limits)
        .and_then(|()| model.burst(limits, &[WORKLOAD, "hello"], count))
    {
        Ok(executions) => executions,
        Err(error) => return place.failed(metric, error),
    };
    let mut sample = place.sample(metric);
    sample.burst_ns = executions
        .iter()
        .filter_map(|execution| execution.waterfall.get(Event::FirstByte))
        .collect();
    sample.burst_ns.sort_unstable();
    sample.value = sample.burst_ns.last().map(|ns| metric.from_ns(*ns as f64));
    let wrong = executions.iter().find_map(what_is_wrong).or_else(|| {
        let greeted = sample.burst_ns.len();
        (greeted != count as usize).then(|| format!("{greeted} of {count} were heard of"))
    });
    if let Some(wrong) = wrong {
        sample.validity = Validity::Excluded(wrong);
    }
    sample.check_range();
    sample
}

/// A sample of when `event` happened in a start.
fn sample(
    place: Place,
    metric: Metric,
    event: Event,
    execution: Result<&Execution, &ModelError>,
) -> Sample {
    let execution = match execution {
        Ok(execution) => execution,
        Err(error) => return place.failed(metric, error),
    };
    let mut sample = place.sample(metric);
    sample.value = execution
        .waterfall
        .get(event)
        .map(|ns| metric.from_ns(ns as f64));
    sample.waterfall = Some(execution.waterfall);
    if let Some(wrong) = what_is_wrong(execution) {
        sample.validity = Validity::Excluded(wrong);
    }
    sample.check_range();
    sample
}

/// Why a start does not count, if it does not.
fn what_is_wrong(execution: &Execution) -> Option<String> {
    if execution.exit_code != 0 {
        Some(format!("the program exited with {}", execution.exit_code))
    } else if execution.stdout != GREETING {
        let said = String::from_utf8_lossy(&execution.stdout);
        Some(format!("the program printed {said:?}"))
    } else {
        execution
            .waterfall
            .disorder()
            .map(|event| format!("{event} is before an earlier event"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::ModelId;
    use crate::testing::FakeModel;

    const PLACE: Place = Place {
        block: 1,
        position: 0,
        model: ModelId::Microvm,
    };

    #[test]
    fn a_burst_s_value_is_when_the_last_was_there() {
        let mut model = FakeModel::new(ModelId::Microvm);
        let limits = InstanceLimits::default();
        let sample = burst(&mut model, PLACE, Metric::Burst10, &limits);
        assert_eq!(sample.validity, Validity::Valid);
        assert_eq!(sample.burst_ns.len(), 10);
        assert!(sample.burst_ns.is_sorted());
        let last = *sample.burst_ns.last().unwrap();
        assert_eq!(sample.value, Some(last as f64 / 1e6));
    }

    #[test]
    fn only_what_runs_in_a_guest_is_restored() {
        let limits = InstanceLimits::default();
        let restored = restored_start(&mut FakeModel::new(ModelId::Microvm), PLACE, &limits);
        assert_eq!(restored.validity, Validity::Valid);
        assert_eq!(restored.metric, Metric::RestoreFirstByte);
        let mut broken = FakeModel::broken(ModelId::Microvm);
        let failed = burst(&mut broken, PLACE, Metric::Burst1, &limits);
        assert!(failed.validity.why_not().unwrap().contains("broken"));
    }
}

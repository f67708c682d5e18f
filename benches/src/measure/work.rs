//! Workloads: fixed pieces of work, timed from outside.

use std::time::Duration;

use serde::Deserialize;

use super::Place;
use crate::metric::Metric;
use crate::models::{Execution, Instance, ModelError, PATIENCE, WORKLOAD};
use crate::result::{Event, Outside, Sample, Validity};

/// How far inside and outside clocks may be apart before it is remarked.
const CLOCKS_APART: f64 = 0.25;

/// What the workload printed.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct WorkloadLine {
    /// Version of the line.
    v: u32,
    /// Which workload it says it is.
    workload: String,
    /// The value by its own clock.
    value: Option<f64>,
    /// What it was asked to do.
    pub work: u64,
    /// Operations.
    iterations: u64,
    /// What should have come of it.
    expected: u64,
    /// What did.
    actual: u64,
    /// Its own clock.
    #[serde(rename = "inside_ns")]
    _inside_ns: u64,
}

/// Reads the workload's output and checks it against what was asked.
///
/// # Errors
/// In words: what is wrong with it.
pub fn parse_line(output: &[u8], metric: Metric, work: u64) -> Result<WorkloadLine, String> {
    let text = String::from_utf8_lossy(output);
    let shown: String = text.chars().take(80).filter(|c| !c.is_control()).collect();
    let line: WorkloadLine = serde_json::from_str(text.trim())
        .map_err(|error| format!("the workload printed {shown:?}, not its line ({error})"))?;
    if line.v != 1 {
        return Err(format!(
            "the workload's line is of version {}, not 1",
            line.v
        ));
    }
    if Some(line.workload.as_str()) != metric.workload() {
        return Err(format!("the workload says that it is {:?}", line.workload));
    }
    if line.work != work || line.iterations != work.saturating_mul(metric.operations_per_work()) {
        return Err(format!(
            "asked for work of {work}, it did {} in {} operations",
            line.work, line.iterations
        ));
    }
    if line.expected != line.actual {
        return Err(format!(
            "the work came to {}, and should have come to {}",
            line.actual, line.expected
        ));
    }
    Ok(line)
}

/// Finds how much of a workload fits into `work_ms`, by letting it find out.
///
/// # Errors
/// In words: it could not be run, or printed something else.
pub fn calibrate(instance: &mut dyn Instance, metric: Metric, work_ms: u64) -> Result<u64, String> {
    let name = metric.workload().ok_or("no workload")?;
    let budget = work_ms.to_string();
    let execution = instance
        .exec(&[WORKLOAD, name, "--budget-ms", &budget], PATIENCE)
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&execution.stdout);
    let line: WorkloadLine = serde_json::from_str(text.trim())
        .map_err(|error| format!("{name} printed no line that can be read ({error})"))?;
    if line.work == 0 {
        return Err(format!("{name} did nothing"));
    }
    Ok(line.work)
}

/// Runs all of a fixed work between two runs of none of it, and makes a sample
/// of the difference of what the host's clock says. Of the empty runs the
/// shorter counts: whatever comes between makes them longer only.
pub fn work(
    instance: &mut dyn Instance,
    place: Place,
    metric: Metric,
    amount: u64,
    work_ms: u64,
) -> Sample {
    let within = PATIENCE + Duration::from_millis(work_ms * 50);
    let mut sample = place.sample(metric);
    let Some(name) = metric.workload() else {
        return place.failed(metric, "no workload");
    };
    let mut run = |work: u64| -> Result<(u64, WorkloadLine), String> {
        let argument = work.to_string();
        let execution = instance
            .exec(&[WORKLOAD, name, "--work", &argument], within)
            .map_err(|error: ModelError| error.to_string())?;
        let line = check(&execution, metric, work)?;
        let whole = execution
            .waterfall
            .get(Event::Exit)
            .ok_or("its end was not seen")?;
        Ok((whole, line))
    };
    let mut runs = || -> Result<_, String> {
        let (before, _) = run(0)?;
        let (whole, line) = run(amount)?;
        let (after, _) = run(0)?;
        Ok((before.min(after), whole, line))
    };
    match runs() {
        Ok((empty_ns, whole_ns, line)) => {
            fill(
                &mut sample,
                Outside {
                    whole_ns,
                    empty_ns,
                    operations: line.iterations,
                },
                &line,
            );
        }
        Err(why) => sample.validity = Validity::Excluded(why),
    }
    sample.check_range();
    sample
}

fn check(execution: &Execution, metric: Metric, work: u64) -> Result<WorkloadLine, String> {
    if execution.exit_code != 0 {
        let said = String::from_utf8_lossy(&execution.stderr);
        let said: String = said
            .trim()
            .chars()
            .take(120)
            .filter(|c| !c.is_control())
            .collect();
        return Err(format!(
            "the workload exited with {} ({said})",
            execution.exit_code
        ));
    }
    parse_line(&execution.stdout, metric, work)
}

fn fill(sample: &mut Sample, outside: Outside, line: &WorkloadLine) {
    sample.outside = Some(outside);
    sample.inside_value = line.value.filter(|value| value.is_finite());
    let Some(net_ns) = outside
        .whole_ns
        .checked_sub(outside.empty_ns)
        .filter(|ns| *ns > 0)
    else {
        sample.validity = Validity::Excluded("no work took longer than the work".into());
        return;
    };
    let value = sample
        .metric
        .from_ns(net_ns as f64 / outside.operations as f64);
    sample.value = Some(value);
    if let Some(inside) = sample.inside_value {
        let apart = (inside / value - 1.0).abs();
        if apart > CLOCKS_APART {
            sample.remarks.push(format!(
                "by the instance's own clock {inside:.1} {}: {:.0} % apart",
                sample.metric.unit(),
                apart * 100.0
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::ModelId;
    use crate::testing::FakeInstance;

    const PLACE: Place = Place {
        block: 1,
        position: 0,
        model: ModelId::Process,
    };

    fn line(work: u64, actual: u64, value: &str) -> String {
        format!(
            "{{\"v\":1,\"workload\":\"sys.null\",\"value\":{value},\"unit\":\"ns/call\",\
             \"work\":{work},\"iterations\":{work},\"expected\":{work},\"actual\":{actual},\
             \"inside_ns\":5}}\n"
        )
    }

    #[test]
    fn a_good_line_is_read() {
        let read = parse_line(line(10, 10, "3.5").as_bytes(), Metric::SysNull, 10).unwrap();
        assert_eq!((read.work, read.value), (10, Some(3.5)));
    }

    #[test]
    fn bad_lines_say_what_is_wrong() {
        let good = line(10, 10, "1");
        for (output, word) in [
            (String::new(), "not its line"),
            ("garbage\u{1b}[2J".into(), "not its line"),
            (line(10, 10, "NaN"), "not its line"),
            (format!("{good}{good}"), "not its line"),
            (line(10, 9, "1"), "should have come to 10"),
            (line(11, 11, "1"), "asked for work of 10"),
            (good.replace("sys.null", "cpu.prime"), "cpu.prime"),
            (good.replace("\"v\":1", "\"v\":2"), "version 2"),
        ] {
            let error = parse_line(output.as_bytes(), Metric::SysNull, 10).unwrap_err();
            assert!(error.contains(word), "{output:?}: {error}");
            assert!(!error.contains('\u{1b}'));
        }
    }

    #[test]
    fn the_empty_run_is_taken_off() {
        let mut instance = FakeInstance::new(vec![
            (2_000_000, 0, line(0, 0, "null")),
            (4_000_000, 0, line(10_000, 10_000, "310")),
            (1_000_000, 0, line(0, 0, "null")),
        ]);
        let sample = work(&mut instance, PLACE, Metric::SysNull, 10_000, 100);
        assert_eq!(sample.validity, Validity::Valid);
        assert_eq!(sample.value, Some(300.0));
        assert_eq!(sample.inside_value, Some(310.0));
        assert!(sample.remarks.is_empty());
    }

    #[test]
    fn failures_are_samples_too() {
        for (runs, word) in [
            (
                vec![(1, 0, line(0, 0, "null")), (9, 3, String::new())],
                "exited with 3",
            ),
            (
                vec![(1, 0, line(0, 0, "null")), (9, 0, "nonsense".into())],
                "not its line",
            ),
            (
                vec![
                    (9, 0, line(0, 0, "null")),
                    (9, 0, line(10, 10, "1")),
                    (9, 0, line(0, 0, "null")),
                ],
                "no work took longer",
            ),
            (
                vec![
                    (1, 0, line(0, 0, "null")),
                    (4_000_000_000_000, 0, line(10, 10, "1")),
                    (1, 0, line(0, 0, "null")),
                ],
                "not plausible",
            ),
            (vec![], "script"),
        ] {
            let mut instance = FakeInstance::new(runs);
            let sample = work(&mut instance, PLACE, Metric::SysNull, 10, 100);
            let why = sample.validity.why_not().unwrap();
            assert!(why.contains(word), "{why}");
            assert_eq!(sample.valid_value(), None);
        }
    }

    #[test]
    fn clocks_that_disagree_are_remarked() {
        let mut instance = FakeInstance::new(vec![
            (0, 0, line(0, 0, "null")),
            (3_000_000, 0, line(10_000, 10_000, "30")),
            (0, 0, line(0, 0, "null")),
        ]);
        let sample = work(&mut instance, PLACE, Metric::SysNull, 10_000, 100);
        assert_eq!(sample.validity, Validity::Valid);
        assert!(
            sample.remarks[0].contains("90 % apart"),
            "{:?}",
            sample.remarks
        );
    }

    proptest::proptest! {
        #[test]
        fn no_output_makes_it_panic(output in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = parse_line(&output, Metric::MemFault, 3);
        }
    }
}

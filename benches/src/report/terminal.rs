//! The table on the terminal: a group of lines for each metric, one of them a
//! model's, narrow enough for 80 columns.

use std::fmt::Write as _;

use super::summary::{Cell, Density, Summary, Verdict};
use crate::metric::{Metric, format_value};
use crate::models::ModelId;
use crate::stats::Interval;

/// The columns of a model's line: the model, median, interval, ratio, its
/// interval, and what else there is to say.
const COLUMNS: usize = 6;
/// Those that are aligned to the right.
const RIGHT: [bool; COLUMNS] = [false, true, true, true, true, false];

/// The report for a terminal.
pub fn terminal(summary: &Summary) -> String {
    let rows: Vec<(Metric, [String; COLUMNS])> = summary
        .plan
        .metrics()
        .into_iter()
        .flat_map(|metric| {
            let models = summary.plan.models.iter();
            models
                .filter(move |&&model| metric.measurement().applies_to(model))
                .map(move |&model| (metric, row(summary, metric, model)))
        })
        .collect();
    let widths: [usize; COLUMNS] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|(_, cells)| cells[column].chars().count());
        cells.max().unwrap_or(0)
    });

    let mut text = heading(summary);
    let mut last = None;
    for (metric, cells) in &rows {
        if last.replace(metric) != Some(metric) {
            text += &title(summary, *metric);
        }
        let mut line = String::new();
        for ((cell, width), right) in cells.iter().zip(widths).zip(RIGHT) {
            // Writing to a string cannot fail.
            let _ = if right {
                write!(line, "  {cell:>width$}")
            } else {
                write!(line, "  {cell:<width$}")
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text.push('\n');
    text += &notes(summary);
    text
}

/// The line above a metric's.
fn title(summary: &Summary, metric: Metric) -> String {
    let better = if metric.more_is_better() {
        "more"
    } else {
        "less"
    };
    let mut line = format!("\n{metric} · {}, {better} is better", metric.unit());
    if let Some(mark) = &summary.mark {
        line += " · ";
        line += mark;
    }
    line.push('\n');
    line
}

fn heading(summary: &Summary) -> String {
    let mut parts = vec![
        format!("profile {}", summary.plan.profile),
        format!("{} of {} blocks", summary.blocks, summary.plan.blocks),
        format!("seed {}", summary.plan.seed),
    ];
    if let Some(mark) = &summary.mark {
        parts.insert(0, mark.to_uppercase());
    }
    if !summary.complete {
        parts.push("INTERRUPTED".into());
    }
    parts.join(" · ") + "\n"
}

/// A model's line.
fn row(summary: &Summary, metric: Metric, model: ModelId) -> [String; COLUMNS] {
    let mut cells: [String; COLUMNS] = Default::default();
    model.name().clone_into(&mut cells[0]);
    let Some(cell) = summary.cell(metric, model) else {
        "-".clone_into(&mut cells[1]);
        return cells;
    };
    cells[5] = remark(cell);
    let Some(estimate) = &cell.estimate else {
        "-".clone_into(&mut cells[1]);
        return cells;
    };
    cells[1] = format_value(estimate.median);
    cells[2] = estimate.interval.map(range).unwrap_or_default();
    if let Some(ratio) = &cell.ratio {
        cells[3] = format!("x {}", format_value(ratio.estimate.median));
        cells[4] = ratio.estimate.interval.map(range).unwrap_or_default();
    } else if model == ModelId::Process {
        "x 1".clone_into(&mut cells[3]);
    }
    cells
}

/// What else there is to say about a cell.
fn remark(cell: &Cell) -> String {
    let mut parts = Vec::new();
    if let Some(ratio) = &cell.ratio
        && ratio.verdict != Verdict::Withheld
    {
        parts.push(ratio.verdict.word().to_owned());
    }
    if cell.excluded > 0 {
        parts.push(format!("({} left out)", cell.excluded));
    } else if cell.estimate.is_none() {
        parts.push("not measured".to_owned());
    }
    parts.join(" ")
}

fn range(interval: Interval) -> String {
    format!(
        "[{} – {}]",
        format_value(interval.low),
        format_value(interval.high)
    )
}

/// What the models take before their first instance, where that is something.
fn shared(densities: &[Density]) -> Option<String> {
    let parts: Vec<String> = densities
        .iter()
        .filter(|density| matches!(density.model, ModelId::HostVps | ModelId::GuestVps))
        .filter_map(|density| {
            let mib = format_value(density.shared_mib?);
            Some(format!("{} {mib} MiB", density.model))
        })
        .collect();
    (!parts.is_empty()).then(|| format!("density.mem: and once, for all: {}.", parts.join(", ")))
}

fn notes(summary: &Summary) -> String {
    let mut text = String::from(
        "Median over blocks, [its 95 % bootstrap interval], x ratio to process in the \
         same\nblock, [its interval].\n",
    );
    if let Some(reason) = &summary.no_verdicts {
        let _ = writeln!(text, "No verdicts: {reason}.");
    }
    for model in &summary.unavailable {
        let _ = writeln!(text, "{} did not run: {}", model.model, model.reason);
    }
    if !summary.excluded.is_empty() {
        let _ = writeln!(text, "{} samples were left out:", summary.excluded.len());
        for sample in summary.excluded.iter().take(5) {
            let _ = writeln!(
                text,
                "  block {} {} {}: {}",
                sample.block, sample.model, sample.metric, sample.why
            );
        }
        if summary.excluded.len() > 5 {
            let _ = writeln!(text, "  and more: see the report");
        }
    }
    for trouble in &summary.troubles {
        let _ = writeln!(text, "trouble: {trouble}");
    }
    if let Some(shared) = shared(&summary.densities) {
        let _ = writeln!(text, "{shared}");
    }
    for burst in summary.bursts.iter().filter(|burst| burst.instances > 1) {
        let _ = writeln!(
            text,
            "start.burst of {} {}: half were there after {} ms, {} a second in all.",
            burst.instances,
            burst.model,
            format_value(burst.middle_ms),
            format_value(burst.per_second)
        );
    }
    for adjustment in &summary.plan.adjustments {
        let _ = writeln!(text, "Plan: {adjustment}.");
    }
    if summary.plan.measures(Metric::StartFirstByte.measurement()) {
        text.push_str("start.cold: T5 (network) is not measured yet.\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::HostKind;
    use crate::testing::recording;

    #[test]
    fn shows_every_metric_of_every_model() {
        let mut recording = recording();
        recording.header.environment.host = HostKind::Emulated;
        let text = terminal(&Summary::new(&recording));
        for metric in Metric::ALL {
            assert!(text.contains(metric.name()), "{metric}:\n{text}");
        }
        for model in ModelId::ALL {
            assert!(text.contains(model.name()));
        }
        for word in [
            "EMULATED HOST",
            "INTERRUPTED",
            "No verdicts",
            "2 samples were left out",
        ] {
            assert!(text.contains(word), "{word}:\n{text}");
        }
        assert!(text.matches("· emulated host\n").count() == Metric::ALL.len());
        for line in text.lines().take_while(|line| !line.starts_with("Median")) {
            assert!(line.chars().count() <= 80, "{line}");
        }
        for word in ["NaN", "inf", "better\n", "worse"] {
            assert!(
                !text.replace("is better ", "").contains(word),
                "{word}:\n{text}"
            );
        }
    }
}

//! The table on the terminal.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::summary::{Cell, Summary, Verdict};
use crate::metric::{Metric, format_value};
use crate::models::ModelId;
use crate::stats::Interval;

/// Columns from which the table is fitted to the terminal.
const READABLE: u16 = 90;

/// The report for a terminal.
pub fn terminal(summary: &Summary) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{}", heading(summary));
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    // A terminal that says it is very narrow (or a serial line that says 0) is
    // better served by long lines than by columns of single letters.
    if table.width().is_some_and(|width| width >= READABLE) {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    let mut head = vec!["metric".to_owned()];
    head.extend(summary.plan.models.iter().map(ToString::to_string));
    table.set_header(head);
    for metric in summary.plan.metrics() {
        let better = if metric.more_is_better() {
            "more"
        } else {
            "less"
        };
        let mut row = vec![format!("{metric}\n{}, {better} is better", metric.unit())];
        for &model in &summary.plan.models {
            row.push(
                summary
                    .cell(metric, model)
                    .map_or_else(|| "-".into(), cell_text),
            );
        }
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let _ = writeln!(text, "{table}");
    let _ = write!(text, "{}", notes(summary));
    text
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
    parts.join(" · ")
}

fn cell_text(cell: &Cell) -> String {
    let Some(estimate) = &cell.estimate else {
        return match cell.excluded {
            0 => "not measured".into(),
            n => format!("{n} invalid"),
        };
    };
    let mut lines = vec![format_value(estimate.median)];
    if let Some(interval) = estimate.interval {
        lines.push(format!("[{}]", range(interval)));
    }
    if let Some(ratio) = &cell.ratio {
        let mut line = format!("x {}", format_value(ratio.estimate.median));
        if let Some(interval) = ratio.estimate.interval {
            let _ = write!(line, " [{}]", range(interval));
        }
        lines.push(line);
        if !matches!(ratio.verdict, Verdict::Withheld) {
            lines.push(ratio.verdict.word().into());
        }
    } else if cell.model == ModelId::Process {
        lines.push("x 1".into());
    }
    if cell.excluded > 0 {
        lines.push(format!("({} left out)", cell.excluded));
    }
    lines.join("\n")
}

fn range(interval: Interval) -> String {
    format!(
        "{} .. {}",
        format_value(interval.low),
        format_value(interval.high)
    )
}

fn notes(summary: &Summary) -> String {
    let mut text = String::from(
        "Median over blocks, [95 % bootstrap interval], x ratio to process in the same block.\n",
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
    use crate::result::Recording;
    use crate::testing::{header, samples};

    #[test]
    fn shows_every_metric_of_every_model() {
        let mut recording = Recording {
            header: header(),
            samples: samples(),
            footer: None,
            unreadable_lines: 0,
        };
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
        for word in ["NaN", "inf", "better\n", "worse"] {
            assert!(
                !text.replace("is better", "").contains(word),
                "{word}:\n{text}"
            );
        }
    }
}

//! Plots, as SVG.
//!
//! Colours are placeholders that the page's style sheet replaces, so that the
//! same plot is readable in light and in dark; models are told apart by label
//! and place, colour only helps.

mod curves;

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::summary::{Start, Summary};
use crate::metric::{Metric, format_value};
use crate::models::ModelId;
use crate::result::{EVENTS, Recording, Sample};
use crate::stats::Interval;

pub(super) use curves::{bursts, density};

/// Text and marks. The style sheet knows these five by their values.
const INK: RGBColor = RGBColor(1, 1, 1);
/// Axes and guides.
const FAINT: RGBColor = RGBColor(2, 2, 2);

/// The models' colours: of Okabe and Ito, told apart by all common kinds of
/// colour vision.
const COLOURS: [(ModelId, RGBColor); 4] = [
    (ModelId::Process, RGBColor(3, 3, 3)),
    (ModelId::HostVps, RGBColor(4, 4, 4)),
    (ModelId::GuestVps, RGBColor(5, 5, 5)),
    (ModelId::Microvm, RGBColor(6, 6, 6)),
];

/// Width of a plot, in its own units; the page scales it.
const WIDTH: u32 = 520;
/// Height of a row of a plot with models for rows.
const ROW: u32 = 34;
/// Room for labels to the left.
const LABELS: u32 = 84;
/// Room for the axis below.
const AXIS: u32 = 40;
const FONT: i32 = 13;

type Canvas<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type PlotResult = Result<(), Box<dyn std::error::Error>>;

fn colour(model: ModelId) -> RGBColor {
    COLOURS
        .iter()
        .find(|(known, _)| *known == model)
        .map_or(INK, |(_, colour)| *colour)
}

fn font(color: RGBColor) -> TextStyle<'static> {
    ("sans-serif", FONT).into_font().color(&color)
}

/// Draws into an SVG of that height; `None` when there was nothing to draw.
fn svg(height: u32, title: &str, draw: impl FnOnce(&Canvas<'_>) -> PlotResult) -> Option<String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        draw(&root).ok()?;
        root.present().ok()?;
    }
    let title = maud::html! { (title) }.into_string();
    Some(text.replacen(
        "<svg ",
        &format!("<svg role=\"img\" aria-label=\"{title}\" "),
        1,
    ))
}

/// A range around `values` with some air, from zero when zero is not far.
fn range(values: impl Iterator<Item = f64>) -> Option<std::ops::Range<f64>> {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for value in values.filter(|value| value.is_finite()) {
        low = low.min(value);
        high = high.max(value);
    }
    if low > high {
        return None;
    }
    if low > 0.0 && low < high * 0.6 {
        low = 0.0;
    }
    let air = ((high - low) * 0.06).max(high.abs() * 0.005).max(1e-9);
    Some(if low == 0.0 { 0.0 } else { low - air }..high + air)
}

/// Plots with one row a model.
fn rows<'a, 'b>(
    root: &'b Canvas<'a>,
    models: &[ModelId],
    x: std::ops::Range<f64>,
    label: &str,
) -> Result<
    ChartContext<'b, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>,
    Box<dyn std::error::Error>,
>
where
    'a: 'b,
{
    let count = models.len() as f64;
    let mut chart = ChartBuilder::on(root)
        .margin_right(24)
        .margin_top(4)
        .set_label_area_size(LabelAreaPosition::Left, LABELS)
        .set_label_area_size(LabelAreaPosition::Bottom, AXIS)
        .build_cartesian_2d(x, 0.0..count)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .light_line_style(FAINT.mix(0.0))
        .bold_line_style(FAINT.mix(0.35))
        .axis_style(FAINT)
        .x_labels(6)
        .x_label_formatter(&|value| format_axis(*value))
        .x_label_style(font(INK))
        .x_desc(label)
        .axis_desc_style(font(INK))
        .draw()?;
    for (index, model) in models.iter().enumerate() {
        let (_, y) = chart.backend_coord(&(0.0, row(models, index)));
        let style = font(INK).pos(Pos::new(HPos::Right, VPos::Center));
        root.draw(&Text::new(model.name(), (LABELS as i32 - 8, y), style))?;
    }
    Ok(chart)
}

/// The middle of a model's row, the first at the top.
fn row(models: &[ModelId], index: usize) -> f64 {
    models.len() as f64 - index as f64 - 0.5
}

fn format_axis(value: f64) -> String {
    if value.abs() < 1e-9 {
        "0".into()
    } else {
        format_value(value)
    }
}

fn height(models: &[ModelId]) -> u32 {
    models.len() as u32 * ROW + AXIS + 8
}

/// Every sample of a metric, with the median and its interval.
pub(super) fn distribution(
    recording: &Recording,
    summary: &Summary,
    metric: Metric,
) -> Option<String> {
    let valid: Vec<(&Sample, f64)> = recording
        .samples
        .iter()
        .filter(|sample| sample.metric == metric)
        .filter_map(|sample| Some((sample, sample.valid_value()?)))
        .collect();
    let x = range(valid.iter().map(|(_, value)| *value))?;
    let models: Vec<ModelId> = summary
        .plan
        .models
        .iter()
        .copied()
        .filter(|model| metric.measurement().applies_to(*model))
        .collect();
    let models = models.as_slice();
    let title = format!("{metric}: every sample, median and interval, by model");
    svg(height(models), &title, |root| {
        let mut chart = rows(root, models, x, metric.unit())?;
        for (index, model) in models.iter().enumerate() {
            let y = row(models, index);
            let colour = colour(*model);
            let mine = valid.iter().filter(|(sample, _)| sample.model == *model);
            chart.draw_series(mine.map(|(sample, value)| {
                // Apart by their number, not by chance: the plot is the same each time.
                let apart = ((sample.sequence * 7) % 11) as f64 / 11.0 - 0.5;
                Circle::new((*value, y + apart * 0.36), 3, colour.mix(0.6).filled())
            }))?;
            let Some(estimate) = summary.cell(metric, *model).and_then(|cell| cell.estimate) else {
                continue;
            };
            if let Some(Interval { low, high }) = estimate.interval {
                let line = [(low, y), (high, y)];
                chart.draw_series([PathElement::new(line, INK.stroke_width(2))])?;
            }
            let median = [(estimate.median, y - 0.3), (estimate.median, y + 0.3)];
            chart.draw_series([PathElement::new(median, INK.stroke_width(3))])?;
        }
        Ok(())
    })
}

/// The ratios to `process` of all metrics, on a logarithmic axis.
pub(super) fn forest(summary: &Summary) -> Option<String> {
    let cells: Vec<_> = summary
        .cells
        .iter()
        .filter_map(|cell| Some((cell, cell.ratio?.estimate)))
        .filter(|(_, estimate)| estimate.median > 0.0)
        .collect();
    let ends = cells.iter().flat_map(|(_, estimate)| {
        let interval = estimate.interval.unwrap_or(Interval {
            low: estimate.median,
            high: estimate.median,
        });
        [interval.low.max(1e-6), interval.high, estimate.median, 1.0]
    });
    let logs = range(ends.map(f64::log10))?;
    let (low, high) = (logs.start.min(-0.05) - 0.05, logs.end.max(0.05) + 0.05);
    let line = 24;
    let mut lines: Vec<Option<usize>> = Vec::new(); // None: a metric's name
    let mut names = Vec::new();
    for (index, (cell, _)) in cells.iter().enumerate() {
        if index == 0 || cells[index - 1].0.metric != cell.metric {
            names.push((lines.len(), cell.metric));
            lines.push(None);
        }
        lines.push(Some(index));
    }
    let count = lines.len() as f64;
    let title = "ratio to process of every metric, with intervals";
    svg(lines.len() as u32 * line + AXIS + 8, title, |root| {
        let mut chart = ChartBuilder::on(root)
            .margin_right(84)
            .margin_top(4)
            .set_label_area_size(LabelAreaPosition::Left, LABELS)
            .set_label_area_size(LabelAreaPosition::Bottom, AXIS)
            .build_cartesian_2d(low..high, 0.0..count)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .disable_y_axis()
            .axis_style(FAINT)
            .x_labels(6)
            .x_label_formatter(&|log| format_axis(10_f64.powf(*log)))
            .x_label_style(font(INK))
            .x_desc("ratio to process (logarithmic)")
            .axis_desc_style(font(INK))
            .draw()?;
        chart.draw_series([PathElement::new(
            [(0.0, 0.0), (0.0, count)],
            FAINT.stroke_width(1),
        )])?;
        for (at, metric) in names {
            let (_, y) = chart.backend_coord(&(low, count - at as f64 - 0.5));
            let better = if metric.more_is_better() {
                "more"
            } else {
                "less"
            };
            let text = format!("{metric} ({better} is better)");
            let style = font(INK).pos(Pos::new(HPos::Left, VPos::Center));
            root.draw(&Text::new(text, (4, y), style))?;
        }
        for (at, index) in lines.iter().enumerate() {
            let Some(index) = index else { continue };
            let (cell, estimate) = cells[*index];
            let y = count - at as f64 - 0.5;
            let colour = colour(cell.model);
            if let Some(interval) = estimate.interval {
                let ends = [
                    (interval.low.max(1e-6).log10(), y),
                    (interval.high.log10(), y),
                ];
                chart.draw_series([PathElement::new(ends, colour.stroke_width(3))])?;
            }
            let middle = estimate.median.log10();
            chart.draw_series([Circle::new((middle, y), 5, colour.filled())])?;
            let (_, pixel) = chart.backend_coord(&(low, y));
            let label = font(INK).pos(Pos::new(HPos::Right, VPos::Center));
            root.draw(&Text::new(
                cell.model.name(),
                (LABELS as i32 - 8, pixel),
                label,
            ))?;
            let value = font(INK).pos(Pos::new(HPos::Left, VPos::Center));
            let text = format!("x {}", format_value(estimate.median));
            root.draw(&Text::new(text, (WIDTH as i32 - 78, pixel), value))?;
        }
        Ok(())
    })
}

/// The events of starts, as segments between events; each model on a
/// scale of its own (its T8 is the whole width) or all on the same.
pub(super) fn waterfall(starts: &[Start], kind: &str, own_scale: bool) -> Option<String> {
    let models: Vec<ModelId> = starts.iter().map(|start| start.model).collect();
    let longest = |start: &Start| {
        start
            .median_ms
            .iter()
            .flatten()
            .copied()
            .fold(0.0, f64::max)
    };
    let most = starts.iter().map(longest).fold(0.0, f64::max);
    if most <= 0.0 {
        return None;
    }
    let line = 58;
    let mut title = format!("events of a {kind} start by model, medians");
    if own_scale {
        title += ", each model on its own scale";
    }
    let (whole, label) = if own_scale {
        (100.0, "% of the model's own T0 to T8")
    } else {
        (most, "ms after the request (T0)")
    };
    svg(models.len() as u32 * line + AXIS + 8, &title, |root| {
        let mut chart = rows(root, &models, 0.0..whole * 1.03, label)?;
        for (index, start) in starts.iter().enumerate() {
            let y = row(&models, index);
            let scale = if own_scale {
                whole / longest(start).max(f64::MIN_POSITIVE)
            } else {
                1.0
            };
            let events: Vec<(&str, f64)> = EVENTS
                .iter()
                .zip(&start.median_ms)
                .filter_map(|((_, name, _), at)| Some((*name, (*at)? * scale)))
                .collect();
            for (step, pair) in events.windows(2).enumerate() {
                let strength = if step % 2 == 0 { 0.75 } else { 0.4 };
                let style = colour(start.model).mix(strength).filled();
                let corners = [(pair[0].1, y - 0.18), (pair[1].1, y + 0.18)];
                chart.draw_series([Rectangle::new(corners, style)])?;
            }
            let mut free = [i32::MIN; 2];
            for (name, at) in &events {
                let line = [(*at, y - 0.24), (*at, y + 0.24)];
                chart.draw_series([PathElement::new(line, INK.stroke_width(1))])?;
                // Labels above, or below where they would cover each other.
                let (x, top) = chart.backend_coord(&(*at, y + 0.26));
                let (_, bottom) = chart.backend_coord(&(*at, y - 0.26));
                let places = [top - 5, bottom + 7];
                let Some(place) = (0..places.len()).find(|&place| x >= free[place]) else {
                    continue;
                };
                free[place] = x + 20;
                let centre = Pos::new(HPos::Center, VPos::Center);
                let style = ("sans-serif", 11).into_font().color(&INK).pos(centre);
                root.draw(&Text::new(*name, (x, places[place]), style))?;
            }
        }
        Ok(())
    })
}

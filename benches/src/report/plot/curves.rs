//! Plots with a line for each model: something over the number of instances.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{AXIS, Canvas, FAINT, FONT, INK, PlotResult, colour, font, format_axis, range, svg};
use crate::metric::Metric;
use crate::models::ModelId;
use crate::report::summary::Summary;
use crate::result::Recording;
use crate::stats::theil_sen;

/// The time of bursts over their size, one line a model, both logarithmic.
pub(in crate::report) fn bursts(recording: &Recording, summary: &Summary) -> Option<String> {
    let dots = |model: ModelId| {
        let of_model = recording.samples.iter().filter(move |s| s.model == model);
        of_model.filter_map(|sample| {
            let count = f64::from(sample.metric.burst()?);
            let ms = sample.valid_value().filter(|ms| *ms > 0.0)?;
            Some((count.log10(), ms.log10()))
        })
    };
    let models: Vec<ModelId> = summary
        .plan
        .models
        .iter()
        .copied()
        .filter(|model| dots(*model).next().is_some())
        .collect();
    let all = || models.iter().flat_map(|model| dots(*model));
    let y_low = all().map(|(_, y)| y).fold(f64::INFINITY, f64::min);
    let y_high = all().map(|(_, y)| y).fold(f64::NEG_INFINITY, f64::max);
    if y_low > y_high {
        return None;
    }
    let x_high = all().map(|(x, _)| x).fold(0.0, f64::max);
    svg(
        300,
        "time until the last of a burst was there, over its size, by model",
        |root| {
            let mut chart = ChartBuilder::on(root)
                .margin_right(96)
                .margin_top(12)
                .set_label_area_size(LabelAreaPosition::Left, 64)
                .set_label_area_size(LabelAreaPosition::Bottom, AXIS)
                .build_cartesian_2d(-0.08..x_high + 0.08, y_low - 0.1..y_high + 0.1)?;
            chart
                .configure_mesh()
                .disable_x_mesh()
                .disable_x_axis()
                .light_line_style(FAINT.mix(0.0))
                .bold_line_style(FAINT.mix(0.35))
                .axis_style(FAINT)
                .y_labels(6)
                .y_label_formatter(&|value| format_axis(10_f64.powf(*value)))
                .label_style(font(INK))
                .y_desc("ms until the last")
                .axis_desc_style(font(INK))
                .draw()?;
            let centre = font(INK).pos(Pos::new(HPos::Center, VPos::Top));
            let (left, bottom) = chart.backend_coord(&(0.0, y_low - 0.1));
            let (right, _) = chart.backend_coord(&(x_high, y_low));
            for count in summary
                .plan
                .bursts
                .iter()
                .filter_map(|metric| metric.burst())
            {
                let x = f64::from(count).log10();
                if x <= x_high + 0.01 {
                    let (pixel, _) = chart.backend_coord(&(x, y_low));
                    let place = (pixel, bottom + 4);
                    root.draw(&Text::new(count.to_string(), place, centre.clone()))?;
                }
            }
            let place = (i32::midpoint(left, right), bottom + 20);
            root.draw(&Text::new("instances at once", place, centre))?;
            let mut taken: Vec<i32> = Vec::new();
            for model in &models {
                let colour = colour(*model);
                let circles = dots(*model).map(|dot| Circle::new(dot, 3, colour.filled()));
                chart.draw_series(circles)?;
                let medians: Vec<(f64, f64)> = summary
                    .bursts
                    .iter()
                    .filter(|burst| burst.model == *model && burst.last_ms > 0.0)
                    .map(|burst| (f64::from(burst.instances).log10(), burst.last_ms.log10()))
                    .collect();
                let Some(end) = medians.last().copied() else {
                    continue;
                };
                chart.draw_series([PathElement::new(medians, colour.stroke_width(2))])?;
                name_line(root, &mut taken, *model, chart.backend_coord(&end))?;
            }
            Ok(())
        },
    )
}

/// A model's name where its line ends, above names that are there already.
fn name_line(
    root: &Canvas<'_>,
    taken: &mut Vec<i32>,
    model: ModelId,
    (x, mut y): (i32, i32),
) -> PlotResult {
    while taken.iter().any(|other| (other - y).abs() < FONT) {
        y -= FONT;
    }
    taken.push(y);
    let style = font(INK).pos(Pos::new(HPos::Left, VPos::Center));
    root.draw(&Text::new(model.name(), (x + 22, y), style))?;
    root.draw(&Circle::new((x + 14, y), 4, colour(model).filled()))?;
    Ok(())
}

/// The host's memory over the number of instances, one line a model.
pub(in crate::report) fn density(recording: &Recording, summary: &Summary) -> Option<String> {
    let mib = f64::from(1 << 20);
    let mut series: Vec<(ModelId, Vec<(f64, f64)>)> = Vec::new();
    for &model in &summary.plan.models {
        let mut points = Vec::new();
        for sample in &recording.samples {
            if (sample.metric, sample.model) != (Metric::DensityMem, model)
                || sample.valid_value().is_none()
            {
                continue;
            }
            let Some(first) = sample.density.first() else {
                continue;
            };
            points.extend(sample.density.iter().map(|point| {
                let taken = first.available_bytes as f64 - point.available_bytes as f64;
                (f64::from(point.instances), taken / mib)
            }));
        }
        if !points.is_empty() {
            series.push((model, points));
        }
    }
    if series.is_empty() {
        return None;
    }
    let all = || series.iter().flat_map(|(_, points)| points.iter());
    let x = 0.0..all().map(|(x, _)| *x).fold(0.0, f64::max) + 0.4;
    let y = range(all().map(|(_, y)| *y).chain([0.0]))?;
    svg(
        300,
        "host memory over the number of instances, by model",
        |root| {
            let mut chart = ChartBuilder::on(root)
                .margin_right(90)
                .margin_top(12)
                .set_label_area_size(LabelAreaPosition::Left, 64)
                .set_label_area_size(LabelAreaPosition::Bottom, AXIS)
                .build_cartesian_2d(x.clone(), y)?;
            chart
                .configure_mesh()
                .light_line_style(FAINT.mix(0.0))
                .bold_line_style(FAINT.mix(0.35))
                .axis_style(FAINT)
                .x_labels(6)
                .y_labels(6)
                .x_label_formatter(&|value| format!("{value:.0}"))
                .y_label_formatter(&|value| format_axis(*value))
                .label_style(font(INK))
                .x_desc("instances")
                .y_desc("MiB taken")
                .axis_desc_style(font(INK))
                .draw()?;
            let mut taken: Vec<i32> = Vec::new();
            for (model, points) in &series {
                let colour = colour(*model);
                let dots = points
                    .iter()
                    .map(|point| Circle::new(*point, 3, colour.filled()));
                chart.draw_series(dots)?;
                let of_slope: Vec<(f64, f64)> = points
                    .iter()
                    .copied()
                    .filter(|(instances, _)| *instances > 0.0)
                    .collect();
                let Some(line) = theil_sen(&of_slope) else {
                    continue;
                };
                // No further than it was measured: models differ in how many
                // instances that is.
                let end = of_slope.iter().map(|(x, _)| *x).fold(1.0, f64::max);
                let at = |x: f64| (x, line.intercept + line.slope * x);
                chart
                    .draw_series([PathElement::new([at(1.0), at(end)], colour.stroke_width(2))])?;
                name_line(root, &mut taken, *model, chart.backend_coord(&at(end)))?;
            }
            Ok(())
        },
    )
}

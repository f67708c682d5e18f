//! The page's sections with figures: tables and plots.

use maud::{Markup, PreEscaped, html};

use crate::metric::{Metric, format_value};
use crate::report::plot;
use crate::report::summary::{Cell, Summary, Verdict};
use crate::result::{EVENTS, Recording};
use crate::stats::Interval;

pub(super) fn results(summary: &Summary) -> Markup {
    html! {
        div.wide {
            table.results {
                thead {
                    tr {
                        th { "metric" }
                        @for model in &summary.plan.models { th { (model) } }
                    }
                }
                tbody {
                    @for metric in summary.plan.metrics() {
                        tr {
                            th {
                                (metric)
                                br;
                                span.small {
                                    (metric.unit()) ", "
                                    (if metric.more_is_better() { "more" } else { "less" })
                                    " is better"
                                }
                            }
                            @for &model in &summary.plan.models {
                                td.figure data-model=(model) {
                                    @if let Some(cell) = summary.cell(metric, model) { (figures(cell)) }
                                }
                            }
                        }
                    }
                }
            }
        }
        p.small {
            "Median over blocks; in brackets the 95 % bootstrap interval of the median; \
             × is the median of the ratios to process within the same block, with its interval."
        }
    }
}

fn figures(cell: &Cell) -> Markup {
    html! {
        @match &cell.estimate {
            None => span { @if cell.excluded > 0 { (cell.excluded) " invalid" } @else { "not measured" } },
            Some(estimate) => {
                span.median { (format_value(estimate.median)) }
                @if let Some(interval) = estimate.interval { span.range { "[" (range(interval)) "]" } }
                @if let Some(ratio) = &cell.ratio {
                    span.ratio {
                        "× " (format_value(ratio.estimate.median))
                        @if let Some(interval) = ratio.estimate.interval { " [" (range(interval)) "]" }
                        @if ratio.verdict != Verdict::Withheld { " " (ratio.verdict.word()) }
                    }
                }
            }
        }
    }
}

fn range(interval: Interval) -> String {
    format!(
        "{} – {}",
        format_value(interval.low),
        format_value(interval.high)
    )
}

pub(super) fn forest(summary: &Summary) -> Markup {
    let plot = plot::forest(summary);
    html! {
        @match plot {
            Some(svg) => figure.one {
                (PreEscaped(svg))
                figcaption {
                    "Point: median of the ratios within blocks. Line: its 95 % interval. \
                     The vertical line is process."
                }
            },
            None => p { "There are no ratios: process or the other models were not measured." },
        }
    }
}

pub(super) fn distributions(recording: &Recording, summary: &Summary) -> Markup {
    let plots: Vec<(Metric, String)> = summary
        .plan
        .metrics()
        .into_iter()
        .filter_map(|metric| Some((metric, plot::distribution(recording, summary, metric)?)))
        .collect();
    html! {
        @if plots.is_empty() { p { "Nothing was measured." } }
        div.plots {
            @for (metric, svg) in &plots {
                figure {
                    h3 { (metric) }
                    (PreEscaped(svg))
                    figcaption { (metric.definition()) }
                }
            }
        }
        p.small {
            "Each dot is a sample; heights within a row only keep dots apart. Tall bar: median. \
             Thin line: its 95 % interval."
        }
    }
}

pub(super) fn starts(summary: &Summary) -> Markup {
    html! {
        @if let Some(svg) = plot::waterfall(summary, false) {
            div.plots {
                figure { (PreEscaped(svg)) figcaption { "All models on the same scale." } }
                @if let Some(svg) = plot::waterfall(summary, true) {
                    figure { (PreEscaped(svg)) figcaption { "Each model on its own scale." } }
                }
            }
            div.wide {
                table {
                    thead {
                        tr {
                            th { "event" } th { "meaning" }
                            @for start in &summary.starts { th { (start.model) } }
                        }
                    }
                    tbody {
                        @for (index, (_, name, meaning)) in EVENTS.iter().enumerate() {
                            tr {
                                th { (name) }
                                td { (meaning) }
                                @for start in &summary.starts {
                                    td.figure {
                                        @match start.median_ms.get(index).copied().flatten() {
                                            Some(ms) => { (format_value(ms)) " ms" }
                                            None => "–",
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        } @else {
            p { "No start was measured." }
        }
        p.small {
            "Medians over all starts, after the request. A dash is an event that the model does \
             not have: a process has no guest kernel, a VPS's agent runs before the request. T5 \
             is not measured yet. “Boot time” in publications is the VMM's own figure (T1 to T3), \
             process creation to a marker (T1 to T6) or the whole (T0 to T7): compare like with like."
        }
    }
}

pub(super) fn densities(recording: &Recording, summary: &Summary) -> Markup {
    let mib = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), format_value);
    html! {
        @if let Some(svg) = plot::density(recording, summary) {
            figure.one { (PreEscaped(svg)) }
            div.wide {
                table {
                    thead {
                        tr {
                            th { "model" }
                            th { "host memory, MiB/instance" }
                            th { "and once, MiB" }
                            th { "processes' PSS, MiB/instance" }
                            th { "cgroups' charge, MiB/instance" }
                        }
                    }
                    tbody {
                        @for density in &summary.densities {
                            tr {
                                th { (density.model) }
                                td.figure { (format_value(density.mib_per_instance)) }
                                td.figure { (mib(density.shared_mib)) }
                                td.figure { (mib(density.host_pss_mib)) }
                                td.figure { (mib(density.cgroup_mib)) }
                            }
                        }
                    }
                }
            }
        } @else {
            p { "No density was measured." }
        }
        p.small {
            (Metric::DensityMem.definition()) " Of a microVM that is its machine process, its \
             guest's kernel with all that it touched, and the agent; of a VPS its processes, \
             mounts and cgroups in a kernel that is there anyway; of a process only itself. What \
             is there anyway is the column “once”: the guest that VPSs share, or the agent on the \
             host, freshly started."
        }
        p.small {
            "The slope leaves out the first launches, which pay for what is loaded once; instances \
             of the small models are launched several at a time, since kernels take memory in \
             pieces of some MiB. PSS is of \
             the processes on the host that carry one instance and nothing else; the charge is of \
             VPSs' cgroups, in the guest for guest-vps. Host memory that a guest touched stays \
             the guest's."
        }
    }
}

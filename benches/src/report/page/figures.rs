//! The page's sections with figures: tables and plots.

use maud::{Markup, PreEscaped, html};

use crate::metric::{Metric, format_value};
use crate::report::plot;
use crate::report::summary::{Cell, Start, Summary, Verdict};
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
                                    @match summary.cell(metric, model) {
                                        Some(cell) => (figures(cell)),
                                        None => span { "does not apply" },
                                    }
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
        (events(&summary.starts, "cold"))
        p.small {
            "Medians over all starts, after the request. A dash is an event that the model does \
             not have: a process has no guest kernel, a VPS's agent runs before the request. T5 \
             is not measured yet. “Boot time” in publications is the VMM's own figure (T1 to T3), \
             process creation to a marker (T1 to T6) or the whole (T0 to T7): compare like with like."
        }
    }
}

pub(super) fn restores(summary: &Summary) -> Markup {
    html! {
        (events(&summary.restores, "restored"))
        p.small {
            "Medians over all starts, after the request. The snapshot is of the freshly booted \
             guest, taken once before the blocks; its memory file is in the host's page cache. T2 \
             is the first instruction that the restored guest executes, T4 its agent's word that \
             it knows itself for a clone (of guest-vps: the VPS's init was executed). The \
             guest-vps guest is restored for each start: T8 includes its end."
        }
    }
}

/// Plots and table of the events of starts.
fn events(starts: &[Start], kind: &str) -> Markup {
    html! {
        @if let Some(svg) = plot::waterfall(starts, kind, false) {
            div.plots {
                figure { (PreEscaped(svg)) figcaption { "All models on the same scale." } }
                @if let Some(svg) = plot::waterfall(starts, kind, true) {
                    figure { (PreEscaped(svg)) figcaption { "Each model on its own scale." } }
                }
            }
            div.wide {
                table {
                    thead {
                        tr {
                            th { "event" } th { "meaning" }
                            @for start in starts { th { (start.model) } }
                        }
                    }
                    tbody {
                        @for (index, (_, name, meaning)) in EVENTS.iter().enumerate() {
                            tr {
                                th { (name) }
                                td { (meaning) }
                                @for start in starts {
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
            p { "No " (kind) " start was measured." }
        }
    }
}

pub(super) fn bursts(recording: &Recording, summary: &Summary) -> Markup {
    html! {
        @if let Some(svg) = plot::bursts(recording, summary) {
            figure.one {
                (PreEscaped(svg))
                figcaption {
                    "Each dot is a burst: the time until its last instance was there. Lines join \
                     the medians; a level one would be all at once at no cost. Both axes are \
                     logarithmic."
                }
            }
            div.wide {
                table {
                    thead {
                        tr {
                            th { "model" } th { "at once" } th { "first" } th { "half of them" }
                            th { "last" } th { "starts a second" }
                        }
                    }
                    tbody {
                        @for burst in &summary.bursts {
                            tr {
                                th { (burst.model) }
                                td.figure { (burst.instances) }
                                td.figure { (format_value(burst.first_ms)) " ms" }
                                td.figure { (format_value(burst.middle_ms)) " ms" }
                                td.figure { (format_value(burst.last_ms)) " ms" }
                                td.figure { (format_value(burst.per_second)) }
                            }
                        }
                    }
                }
            }
        } @else {
            p { "No burst was measured." }
        }
        p.small {
            (Metric::Burst1.definition()) " Publications print either the time of the whole batch \
             (“last” here) or the mean of one start in it (near “half of them”): compare like \
             with like. All instances of a microvm burst are there at once before the first one \
             is ended."
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

//! The page's sections on what the figures rest on.

use maud::{Markup, html};

use crate::models::ModelId;
use crate::report::summary::Summary;

pub(super) fn conditions(summary: &Summary) -> Markup {
    html! {
        div.wide {
            table {
                thead {
                    tr { th { "model" } th { "what it is" } th { "kernel" } th { "limits" } th { "root" } th { "shares" } }
                }
                tbody {
                    @for conditions in &summary.conditions {
                        tr {
                            th { (conditions.model) }
                            td { (conditions.model.description()) }
                            td { (conditions.kernel) }
                            td { (conditions.limits) }
                            td { (conditions.image) }
                            td { (conditions.shares) }
                        }
                    }
                    @for model in &summary.unavailable {
                        tr {
                            th { (model.model) }
                            td colspan="5" { "did not run: " (model.reason) }
                        }
                    }
                }
            }
        }
        @if summary.plan.models.contains(&ModelId::Process) {
            p.small {
                "Not equal: process has neither limits nor a root of its own; the guest's kernel \
                 is configured for guests, the host's is the distribution's."
            }
        }
    }
}

pub(super) fn left_out(summary: &Summary) -> Markup {
    html! {
        @if summary.excluded.is_empty() { p { "No sample was left out." } }
        @else {
            p {
                (summary.excluded.len()) " samples are kept in samples.jsonl and left out of every \
                 figure here:"
            }
            div.wide {
                table {
                    thead { tr { th { "sample" } th { "block" } th { "model" } th { "metric" } th { "why" } } }
                    tbody {
                        @for sample in &summary.excluded {
                            tr {
                                td.figure { (sample.sequence) }
                                td.figure { (sample.block) }
                                td { (sample.model) }
                                td { (sample.metric) }
                                td { (sample.why) }
                            }
                        }
                    }
                }
            }
        }
        @if summary.unreadable_lines > 0 {
            p { (summary.unreadable_lines) " lines of samples.jsonl could not be read." }
        }
        @for trouble in &summary.troubles { p { "Trouble: " (trouble) } }
    }
}

pub(super) fn method(summary: &Summary) -> Markup {
    let plan = &summary.plan;
    html! {
        p {
            "Randomised complete blocks: each block has every model once, in a random order of \
             seed " (plan.seed) ", with a fresh instance and a random order of the workloads in \
             it. Each workload is a fixed piece of work, found once on process to take about "
            (plan.work_ms) " ms; the host's clock times the whole from asking for the program to \
             learning of its exit, and the shorter of two runs of the same program without work, \
             one before and one after, is taken off. \
             Clocks inside instances are recorded and not used."
        }
        p {
            "Each block counts with the median of its samples, so blocks are the repetitions. \
             Intervals are bootstrap intervals (BCa, percentile where BCa is not defined) from \
             9999 resamples of blocks with the run's seed. Ratios are paired within blocks. A \
             verdict needs " (crate::plan::VERDICT_BLOCKS) " blocks and an interval that does not \
             hold 1; it is not corrected for the number of comparisons."
        }
        @for adjustment in &plan.adjustments { p { "Plan: " (adjustment) "." } }
        div.wide {
            table {
                thead { tr { th { "metric" } th { "definition" } th { "plausible" } th { "fixed work" } } }
                tbody {
                    @for metric in plan.metrics() {
                        tr {
                            th { (metric) }
                            td { (metric.definition()) }
                            td { (metric.plausible().0) " to " (metric.plausible().1) " " (metric.unit()) }
                            td {
                                @match plan.work.get(&metric) {
                                    Some(work) => { (work * metric.operations_per_work()) " operations" }
                                    None => "–",
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn environment(summary: &Summary) -> Markup {
    html! {
        details open {
            summary { "Facts of the host" }
            div.wide {
                table {
                    tbody {
                        @for fact in &summary.environment.facts {
                            tr {
                                td { (fact.group) }
                                th { (fact.name) }
                                td { (fact.value.as_deref().unwrap_or("not readable here")) }
                            }
                        }
                    }
                }
            }
        }
    }
}

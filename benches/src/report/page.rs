//! The page: one HTML file with everything in it, no script, nothing fetched.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::plot;
use super::summary::{Cell, Summary, Verdict};
use crate::metric::{Measurement, Metric, format_value};
use crate::models::ModelId;
use crate::result::{EVENTS, Recording};
use crate::stats::Interval;

const STYLE: &str = include_str!("style.css");

/// The page of a run.
pub fn page(recording: &Recording, summary: &Summary) -> String {
    let mark = summary.mark.as_deref();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "insula compare" @if let Some(mark) = mark { " (" (mark) ")" } }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (head(recording, summary))
                (section("Results", mark, &results(summary)))
                (section("Ratio to process", mark, &forest(summary)))
                (section("Every sample", mark, &distributions(recording, summary)))
                @if summary.plan.measures(Measurement::StartCold) {
                    (section("Cold start", mark, &starts(summary)))
                }
                @if summary.plan.measures(Measurement::DensityMem) {
                    (section("Density", mark, &densities(recording, summary)))
                }
                (section("What was compared", None, &conditions(summary)))
                (section("What was left out", None, &left_out(summary)))
                (section("Method", None, &method(summary)))
                (section("Environment", None, &environment(summary)))
            }
        }
    }
    .into_string()
}

fn section(title: &str, mark: Option<&str>, body: &Markup) -> Markup {
    html! {
        section {
            h2 { (title) @if let Some(mark) = mark { " " span.mark.small { (mark) } } }
            (body)
        }
    }
}

fn head(recording: &Recording, summary: &Summary) -> Markup {
    let environment = &summary.environment;
    let fact = |group: &str, name: &str| {
        environment
            .facts
            .iter()
            .find(|fact| fact.group == group && fact.name == name)
            .and_then(|fact| fact.value.as_deref())
            .unwrap_or("unknown")
    };
    html! {
        h1 { "Isolation models compared" }
        @if let Some(mark) = &summary.mark { p { span.mark { (mark) } } }
        p {
            (fact("cpu", "model name")) ", " (environment.cpus) " CPUs, "
            (environment.memory_bytes >> 20) " MiB, Linux " (fact("kernel", "release")) ". "
            "Profile " (summary.plan.profile) ", " (summary.blocks) " of " (summary.plan.blocks)
            " blocks, " (recording.samples.len()) " samples, seed " (summary.plan.seed) "."
        }
        @if let Some(explanation) = environment.host.explanation() {
            p.warning { (explanation) }
        }
        @if !summary.complete {
            p.warning {
                "This run was interrupted. What is here is what it had: blocks that were not \
                 finished count as far as they went."
            }
        }
        @if let Some(reason) = &summary.no_verdicts {
            p.warning { "No verdicts: " (reason) "." }
        }
        @for model in &summary.unavailable {
            p.warning { strong { (model.model) } " did not run: " (model.reason) }
        }
    }
}

fn results(summary: &Summary) -> Markup {
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

fn forest(summary: &Summary) -> Markup {
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

fn distributions(recording: &Recording, summary: &Summary) -> Markup {
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

fn starts(summary: &Summary) -> Markup {
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

fn densities(recording: &Recording, summary: &Summary) -> Markup {
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
            "The slope leaves out the first launch, which pays for what is loaded once. PSS is of \
             the processes on the host that carry one instance and nothing else; the charge is of \
             VPSs' cgroups, in the guest for guest-vps. Host memory that a guest touched stays \
             the guest's."
        }
    }
}

fn conditions(summary: &Summary) -> Markup {
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

fn left_out(summary: &Summary) -> Markup {
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

fn method(summary: &Summary) -> Markup {
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

fn environment(summary: &Summary) -> Markup {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::HostKind;
    use crate::testing::{header, samples};

    fn recording() -> Recording {
        Recording {
            header: header(),
            samples: samples(),
            footer: None,
            unreadable_lines: 0,
        }
    }

    fn render(recording: &Recording) -> String {
        page(recording, &Summary::new(recording))
    }

    #[test]
    fn has_every_plot_and_nothing_to_fetch() {
        let page = render(&recording());
        // Eight distributions, the forest, two waterfalls, the density.
        assert_eq!(page.matches("<svg ").count(), Metric::ALL.len() + 4);
        for svg in page.split("<svg ").skip(1) {
            let svg = svg.split("</svg>").next().unwrap();
            assert!(svg.contains("aria-label="));
            let marks = svg.matches("<circle").count() + svg.matches("<rect").count();
            assert!(marks >= 3, "an empty plot: {}", &svg[..200]);
        }
        for fetched in [
            "http://", "https://", "<script", "<link", "<img", "@import", "url(",
        ] {
            let found = page
                .replace("http://www.w3.org/2000/svg", "")
                .contains(fetched);
            assert!(!found, "{fetched}");
        }
    }

    #[test]
    fn numbers_are_finite_and_text_is_escaped() {
        let page = render(&recording());
        for word in [
            "NaN",
            "inf ",
            ">inf",
            "-inf",
            "<script>",
            "<i>garbage",
            "<b>no</b>",
        ] {
            assert!(!page.contains(word), "{word}");
        }
        assert!(page.contains("&lt;script&gt;") && page.contains("&lt;i&gt;garbage"));
        assert!(page.contains("no /dev/kvm &amp; &lt;b&gt;no"));
    }

    #[test]
    fn an_emulated_host_is_marked_on_every_section_with_figures() {
        let mut recording = recording();
        recording.header.environment.host = HostKind::Emulated;
        let page = render(&recording);
        assert!(page.matches("emulated host").count() >= 7);
        assert!(page.contains("No verdict about hardware"));
        for verdict in ["] better", "] worse", "] not resolved"] {
            assert!(!page.contains(verdict), "{verdict}");
        }
    }

    #[test]
    fn little_or_nothing_measured_renders_too() {
        let mut recording = recording();
        recording.samples.truncate(1);
        assert!(render(&recording).contains("<svg "));
        recording.samples.clear();
        let page = render(&recording);
        assert!(!page.contains("<svg ") && page.contains("Nothing was measured"));
        recording.header.plan.models.clear();
        assert!(render(&recording).contains("did not run"));
    }
}

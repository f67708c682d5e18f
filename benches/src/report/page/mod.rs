//! The page: one HTML file with everything in it, no script, nothing fetched.

mod basis;
mod figures;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::summary::Summary;
use crate::metric::Measurement;
use crate::result::Recording;

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
                (section("Results", mark, &figures::results(summary)))
                (section("Ratio to process", mark, &figures::forest(summary)))
                (section("Every sample", mark, &figures::distributions(recording, summary)))
                @if summary.plan.measures(Measurement::StartCold) {
                    (section("Cold start", mark, &figures::starts(summary)))
                }
                @if summary.plan.measures(Measurement::StartRestore) {
                    (section("Restored start", mark, &figures::restores(summary)))
                }
                @if summary.plan.measures(Measurement::StartBurst) {
                    (section("Bursts", mark, &figures::bursts(recording, summary)))
                }
                @if summary.plan.measures(Measurement::DensityMem) {
                    (section("Density", mark, &figures::densities(recording, summary)))
                }
                (section("What was compared", None, &basis::conditions(summary)))
                (section("What was left out", None, &basis::left_out(summary)))
                (section("Method", None, &basis::method(summary)))
                (section("Environment", None, &basis::environment(summary)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::HostKind;
    use crate::metric::Metric;
    use crate::testing::recording;

    fn render(recording: &Recording) -> String {
        page(recording, &Summary::new(recording))
    }

    #[test]
    fn has_every_plot_and_nothing_to_fetch_or_to_run() {
        let page = render(&recording());
        // The distributions, the forest, two waterfalls each of cold and of
        // restored starts, the bursts, the density.
        assert_eq!(page.matches("<svg ").count(), Metric::ALL.len() + 7);
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
        // No script, so that none can fail: neither elements nor attributes.
        for script in [
            "<script",
            "javascript:",
            " onload=",
            " onclick=",
            " onerror=",
        ] {
            assert!(!page.contains(script), "{script}");
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
        assert!(page.matches("emulated host").count() >= 9);
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

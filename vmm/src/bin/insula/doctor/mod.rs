//! `insula doctor`: what this machine can do, and how to cure what it can't.

mod host;
mod kvm;
mod room;
mod software;

use comfy_table::{Cell, Color};
use serde::Serialize;
use serde_json::json;

use crate::cli::On;
use crate::failure::{Failure, Outcome};
use crate::forward;
use crate::output::{Output, table};
use crate::place;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Good,
    /// Something is less than it could be; nothing fails for it.
    Lacking,
    /// What needs it will fail.
    Bad,
}

/// What a check found.
#[derive(Debug, Clone, Serialize)]
struct Finding {
    /// What was looked at.
    what: &'static str,
    /// How it came out.
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What cures it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cure: Option<String>,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self {
            what,
            verdict: Verdict::Good,
            found: found.into(),
            cure: None,
        }
    }

    fn lacking(what: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            what,
            verdict: Verdict::Lacking,
            found: found.into(),
            cure: Some(cure.into()),
        }
    }

    fn bad(what: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            what,
            verdict: Verdict::Bad,
            found: found.into(),
            cure: Some(cure.into()),
        }
    }
}

/// Where guests can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum RunsOn {
    Hardware,
    Lab,
}

/// Runs `insula doctor`.
pub(crate) fn main(on: Option<On>, output: &Output) -> Outcome {
    if on == Some(On::Lab) && !place::is_lab() {
        return forward::to_lab(None, output);
    }
    let spinner = output.spinner("examining this machine");
    let kvm = kvm::check();
    let (lab, lab_works) = software::lab();
    let mut findings = kvm.findings;
    findings.extend(host::check());
    findings.extend(room::check());
    findings.extend(software::check());
    findings.push(lab);
    drop(spinner);

    let runs_on = if kvm.is_usable {
        Some(RunsOn::Hardware)
    } else if lab_works && !place::is_lab() {
        Some(RunsOn::Lab)
    } else {
        None
    };
    let summary = match runs_on {
        Some(RunsOn::Hardware) if place::is_lab() => "Guests run here, in the lab.",
        Some(RunsOn::Hardware) => "Guests run on this machine's KVM.",
        Some(RunsOn::Lab) if kvm.kind == "pvm" => {
            "Guests run in the lab, an emulated host, which commands start by themselves; with \
             --on pvm, on this machine's KVM."
        }
        Some(RunsOn::Lab) => {
            "Guests run in the lab, an emulated host, which commands start by themselves."
        }
        None => "Guests can't run here: neither KVM nor the lab works.",
    };
    output.result(
        &json!({"runs_on": runs_on, "kvm": kvm.kind, "summary": summary, "checks": findings}),
        || show(&findings, summary),
    )?;
    if runs_on.is_some() {
        return Ok(0);
    }
    let cures: Vec<_> = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Bad)
        .filter_map(|finding| finding.cure.as_deref())
        .collect();
    Err(Failure::new(format!(
        "guests can't run here; to cure it: {}",
        cures.join("; or ")
    )))
}

fn show(findings: &[Finding], summary: &str) -> String {
    let mut table = table(&["", "what", "found"]);
    for finding in findings {
        let (sign, color) = match finding.verdict {
            Verdict::Good => ("ok", Color::Green),
            Verdict::Lacking => ("--", Color::Yellow),
            Verdict::Bad => ("NO", Color::Red),
        };
        let found = match &finding.cure {
            Some(cure) => format!("{}\n-> {cure}", finding.found),
            None => finding.found.clone(),
        };
        table.add_row([
            Cell::new(sign).fg(color),
            Cell::new(finding.what),
            Cell::new(found),
        ]);
    }
    format!("{table}\n\n{summary}\n")
}

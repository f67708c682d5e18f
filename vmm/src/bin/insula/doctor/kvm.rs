//! KVM: whether it can be opened, what it offers, and of what kind it is.

use vmm::probe::{KvmKind, Probe, probe};

use super::Finding;
use crate::place::{self, DEVICE};

/// What was found out about KVM.
pub(super) struct Report {
    pub(super) findings: Vec<Finding>,
    /// Guests can be started directly.
    pub(super) is_usable: bool,
    /// `hardware`, `pvm`, `unusable` or `missing`.
    pub(super) kind: &'static str,
}

/// Opens KVM, asks it, and runs micro-guests on it.
pub(super) fn check() -> Report {
    if let Some(place::Kvm::Missing { why, cure }) = place::missing() {
        return Report {
            findings: vec![Finding::lacking("kvm", why, cure)],
            is_usable: false,
            kind: "missing",
        };
    }
    let probe = probe();
    let mut findings = vec![match probe.api_version {
        Some(version) => Finding::good("kvm", format!("{DEVICE} opens, API version {version}")),
        None => Finding::lacking(
            "kvm",
            probe.kind.to_string(),
            "see the kernel's log (dmesg)",
        ),
    }];
    if !probe.capabilities.is_empty() {
        findings.push(capabilities(&probe));
    }
    findings.push(kind(&probe.kind));
    Report {
        findings,
        is_usable: probe.kind.is_hardware(),
        kind: match probe.kind {
            KvmKind::Hardware { .. } => "hardware",
            KvmKind::Pvm { .. } => "pvm",
            KvmKind::Unusable { .. } => "unusable",
        },
    }
}

fn capabilities(probe: &Probe) -> Finding {
    const WHAT: &str = "kvm capabilities";
    let missing: Vec<_> = probe
        .capabilities
        .iter()
        .filter(|capability| !capability.present)
        .map(|capability| format!("{} ({})", capability.name, capability.purpose))
        .collect();
    if missing.is_empty() {
        let found = format!("all {} that guests need", probe.capabilities.len());
        Finding::good(WHAT, found)
    } else {
        let found = format!("without {}", missing.join(", "));
        Finding::lacking(WHAT, found, "boot a newer kernel")
    }
}

/// What runs the guests' kernels: the processor, or an emulator.
fn kind(kind: &KvmKind) -> Finding {
    const WHAT: &str = "kvm kind";
    let cure = match kind {
        KvmKind::Hardware { .. } => {
            let emulated = if place::is_lab() {
                ", emulated: this is the lab"
            } else {
                ""
            };
            return Finding::good(WHAT, format!("{kind}{emulated}"));
        }
        KvmKind::Pvm { .. } => {
            "guests run on it with --on pvm: their programs at full speed, their kernels slowly; \
             without that they run in the lab. For full speed, use a machine (or a kind of cloud \
             instance) with VT-x or SVM"
        }
        KvmKind::Unusable { .. } => "see the kernel's log (dmesg)",
    };
    Finding::lacking(WHAT, kind.to_string(), cure)
}

//! KVM: whether it can be opened, what it offers, and of what kind it is.

use std::fs;

use kvm_ioctls::{Cap, Kvm};

use super::Finding;
use crate::place::{self, DEVICE};

/// The only version of KVM's interface that there is.
const API_VERSION: i32 = 12;

/// What guests need of KVM.
const NEEDED: [(Cap, &str); 9] = [
    (Cap::UserMemory, "user memory"),
    (Cap::Irqchip, "irqchip"),
    (Cap::Pit2, "PIT"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::Irqfd, "irqfd"),
    (Cap::SetTssAddr, "TSS address"),
    (Cap::ExtCpuid, "CPUID"),
    (Cap::ImmediateExit, "immediate exit"),
    (Cap::MpState, "MP state"),
];

/// What was found out about KVM.
pub(super) struct Report {
    pub(super) findings: Vec<Finding>,
    /// Guests can be started directly.
    pub(super) is_usable: bool,
}

/// Opens KVM and asks it.
pub(super) fn check() -> Report {
    if let place::Kvm::Missing { why, cure } = place::kvm() {
        return Report {
            findings: vec![Finding::lacking("kvm", why, cure)],
            is_usable: false,
        };
    }
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            let found = format!("{DEVICE} cannot be opened ({error})");
            return Report {
                findings: vec![Finding::lacking(
                    "kvm",
                    found,
                    "see the kernel's log (dmesg)",
                )],
                is_usable: false,
            };
        }
    };
    let mut findings = Vec::new();
    let version = kvm.get_api_version();
    let is_known = version == API_VERSION;
    findings.push(if is_known {
        Finding::good(
            "kvm",
            format!(
                "{DEVICE} opens, API version {version}, up to {} vCPUs",
                kvm.get_max_vcpus()
            ),
        )
    } else {
        Finding::lacking(
            "kvm",
            format!("API version {version}, not {API_VERSION}"),
            "boot a kernel from this decade",
        )
    });
    let lacking: Vec<_> = NEEDED
        .iter()
        .filter(|(cap, _)| !kvm.check_extension(*cap))
        .map(|(_, name)| *name)
        .collect();
    findings.push(if lacking.is_empty() {
        Finding::good("kvm capabilities", "all that guests need")
    } else {
        Finding::lacking(
            "kvm capabilities",
            format!("without {}", lacking.join(", ")),
            "boot a newer kernel, with KVM's irqchip built in",
        )
    });
    let (kind, is_hardware) = kind();
    findings.push(kind);
    Report {
        findings,
        is_usable: is_known && lacking.is_empty() && is_hardware,
    }
}

/// What runs the guests' kernels: the processor, or an emulator.
fn kind() -> (Finding, bool) {
    let cure = "guests run in the lab; for hardware virtualization use a machine, or a kind of \
                cloud instance, that has VT-x or SVM";
    match place::kvm() {
        place::Kvm::Hardware => {
            let module = ["kvm_intel", "kvm_amd"]
                .into_iter()
                .find(|module| fs::exists(format!("/sys/module/{module}")).unwrap_or(false));
            let place = if place::is_lab() {
                ", emulated: this is the lab"
            } else {
                ""
            };
            let module = module.map_or_else(String::new, |module| format!(" ({module})"));
            (
                Finding::good("kvm kind", format!("hardware{module}{place}")),
                true,
            )
        }
        _ => (
            Finding::lacking(
                "kvm kind",
                "PVM: no VT-x or SVM; guests' kernels are emulated and do not start directly",
                cure,
            ),
            false,
        ),
    }
}

//! Where guests run: on this machine's own KVM, or in the lab.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

use crate::cli::On;
use crate::failure::Failure;
use crate::output::Output;

/// Where guests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Here.
    Hardware,
    /// In the lab.
    Lab,
}

/// What there is of KVM, by a look that costs nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kvm {
    /// The processor has VT-x or SVM, and `/dev/kvm` can be opened.
    Hardware,
    /// `/dev/kvm` can be opened, but the processor has neither: KVM on pages
    /// tables alone, which emulates the guest's kernel an instruction at a time.
    Pvm,
    /// There is none, or it can't be used; why, and the cure.
    Missing {
        /// What is wrong.
        why: String,
        /// What helps.
        cure: &'static str,
    },
}

/// The file by which the lab is known from inside.
const LAB_MARK: &str = "/etc/insula-lab.json";
/// KVM's device.
pub(crate) const DEVICE: &str = "/dev/kvm";

/// Whether this is the lab.
pub(crate) fn is_lab() -> bool {
    Path::new(LAB_MARK).exists()
}

/// Where the command is to be done.
pub(crate) fn decide(on: Option<On>, output: &Output) -> Result<Place, Failure> {
    match on {
        Some(On::Hardware) => Ok(Place::Hardware),
        Some(On::Lab) if is_lab() => Err(Failure::usage(
            "--on lab: this is the lab already; leave the option out",
        )),
        Some(On::Lab) => Ok(Place::Lab),
        None if is_lab() => Ok(Place::Hardware),
        None => match kvm() {
            Kvm::Hardware => Ok(Place::Hardware),
            Kvm::Pvm => {
                output.detail("KVM here is of the PVM kind: using the lab");
                Ok(Place::Lab)
            }
            Kvm::Missing { why, .. } => {
                output.detail(format!("{why}: using the lab"));
                Ok(Place::Lab)
            }
        },
    }
}

/// Refuses to start a guest where it would not work.
pub(crate) fn require_hardware() -> Result<(), Failure> {
    match kvm() {
        Kvm::Hardware => Ok(()),
        Kvm::Pvm => Err(Failure::new(
            "this machine's /dev/kvm is of the PVM kind (no VT-x or SVM): guests do not start on \
             it; run them in the lab, by leaving out --on hardware or saying --on lab",
        )),
        Kvm::Missing { why, cure } => Err(Failure::new(format!(
            "{why}: {cure}; or run guests in the lab, by leaving out --on hardware or saying \
             --on lab"
        ))),
    }
}

/// What there is of KVM.
pub(crate) fn kvm() -> Kvm {
    let opened = File::options().read(true).write(true).open(DEVICE);
    if let Err(error) = opened {
        let (why, cure) = match error.kind() {
            ErrorKind::NotFound => (
                format!("there is no {DEVICE}"),
                "load the module (modprobe kvm_intel or kvm_amd), or switch virtualization on in \
                 the firmware",
            ),
            ErrorKind::PermissionDenied => (
                format!("{DEVICE} may not be opened by this user"),
                "join its group (sudo usermod -aG kvm $USER, then log in again)",
            ),
            _ => (
                format!("{DEVICE} cannot be opened ({error})"),
                "see the kernel's log (dmesg)",
            ),
        };
        return Kvm::Missing { why, cure };
    }
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if has_virtualization(&cpuinfo) {
        Kvm::Hardware
    } else {
        Kvm::Pvm
    }
}

/// Whether the processor's flags show VT-x or SVM.
fn has_virtualization(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|line| {
        line.split_whitespace()
            .any(|flag| flag == "vmx" || flag == "svm")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_whole_words() {
        assert!(has_virtualization("model : 1\nflags\t\t: fpu svm sse\n"));
        assert!(has_virtualization("flags : vmx\n"));
        assert!(!has_virtualization("flags : fpu svm_lock\nbugs : svm\n"));
        assert!(!has_virtualization(""));
    }
}

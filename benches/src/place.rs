//! Where the comparison runs: on this machine, or in the lab.

use std::fs::{self, File};
use std::path::Path;

use anyhow::bail;
use clap::ValueEnum;
use vmm::probe::{KvmKind, probe};

/// The file by which the lab is known from inside.
const LAB_MARK: &str = "/etc/insula-lab.json";
const DEVICE: &str = "/dev/kvm";

/// Where to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Place {
    /// On this machine.
    Hardware,
    /// On this machine, whose KVM emulates guests' kernels.
    Pvm,
    /// In the lab, an emulated host.
    Lab,
}

/// Decides where to run: where the caller says, else here when guests can run
/// here, else in the lab.
pub(crate) fn decide(wanted: Option<Place>) -> anyhow::Result<Place> {
    let is_lab = Path::new(LAB_MARK).exists();
    match wanted {
        Some(Place::Lab) if is_lab => bail!("--on lab: this is the lab already; leave it out"),
        Some(Place::Pvm) => match probe().kind {
            KvmKind::Pvm { .. } => Ok(Place::Pvm),
            other => bail!("--on pvm: this machine's KVM is not of the PVM kind but {other}"),
        },
        Some(place) => Ok(place),
        None if is_lab || no_guests().is_none() => Ok(Place::Hardware),
        None => Ok(Place::Lab),
    }
}

/// Why no guests can run here; `None` when they can.
pub(crate) fn no_guests() -> Option<String> {
    if let Err(error) = File::options().read(true).write(true).open(DEVICE) {
        return Some(format!(
            "{DEVICE} cannot be opened ({error}); insula doctor says what to do"
        ));
    }
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    (!has_virtualization(&cpuinfo)).then(|| {
        format!(
            "this machine's {DEVICE} is of the PVM kind (no VT-x or SVM); use --on pvm or --on lab"
        )
    })
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
        assert!(!has_virtualization("flags : fpu svm_lock\nbugs : svm\n"));
        assert!(!has_virtualization(""));
    }
}

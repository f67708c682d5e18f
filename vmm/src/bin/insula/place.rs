//! Where guests run: on this machine's own KVM, or in the lab.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use vmm::guest::RunRoot;
use vmm::probe::{KvmKind, probe};

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

/// What there is of KVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kvm {
    /// Guests run on it.
    Hardware,
    /// Guests' kernels are emulated an instruction at a time, for want of VT-x
    /// and SVM: ordinary ones do not boot.
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
    refuse_all_but_hardware(kvm())
}

fn refuse_all_but_hardware(kvm: Kvm) -> Result<(), Failure> {
    match kvm {
        Kvm::Hardware => Ok(()),
        Kvm::Pvm => Err(Failure::new(
            "this machine's /dev/kvm is of the PVM kind (it emulates guests' kernels for want of VT-x or SVM): guests do not start on \
             it; run them in the lab, by leaving out --on hardware or saying --on lab",
        )),
        Kvm::Missing { why, cure } => Err(Failure::new(format!(
            "{why}: {cure}; or run guests in the lab, by leaving out --on hardware or saying \
             --on lab"
        ))),
    }
}

/// What there is of KVM: whether it opens, then what [`probe`] finds by
/// running micro-guests, which is asked once after each boot.
pub(crate) fn kvm() -> Kvm {
    if let Some(missing) = missing() {
        return missing;
    }
    // An emulator is slow enough to be taken for the other kind.
    if is_lab() {
        return Kvm::Hardware;
    }
    let known = RunRoot::for_user().ok().and_then(|root| Known::open(&root));
    if let Some(kind) = known.as_ref().and_then(Known::kind) {
        return kind;
    }
    let kind = match probe().kind {
        KvmKind::Hardware { .. } => Kvm::Hardware,
        KvmKind::Pvm { .. } => Kvm::Pvm,
        KvmKind::Unusable { reason } => {
            return Kvm::Missing {
                why: format!("{DEVICE} is of no use ({reason})"),
                cure: "see `insula doctor` and the kernel's log (dmesg)",
            };
        }
    };
    if let Some(known) = known {
        known.remember(&kind);
    }
    kind
}

/// What is wrong with KVM's device, if anything is.
pub(crate) fn missing() -> Option<Kvm> {
    let error = File::options().read(true).write(true).open(DEVICE).err()?;
    let (why, cure) = match error.kind() {
        ErrorKind::NotFound => (
            format!("there is no {DEVICE}"),
            "load the module (modprobe kvm_intel or kvm_amd), or switch virtualization on in the \
             firmware",
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
    Some(Kvm::Missing { why, cure })
}

/// What was found out about KVM since the host booted: a file beside the
/// guests' directories, whose name no guest can have.
#[derive(Debug)]
struct Known {
    path: PathBuf,
    boot_id: String,
}

impl Known {
    fn open(root: &RunRoot) -> Option<Self> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(Self {
            path: root.path().join(".kvm-kind"),
            boot_id: boot_id.trim().to_owned(),
        })
    }

    /// What was remembered, unless it is about another boot or nonsense.
    fn kind(&self) -> Option<Kvm> {
        let text = fs::read_to_string(&self.path).ok()?;
        match text.trim_end().split_once(' ')? {
            (boot_id, "hardware") if boot_id == self.boot_id => Some(Kvm::Hardware),
            (boot_id, "pvm") if boot_id == self.boot_id => Some(Kvm::Pvm),
            _ => None,
        }
    }

    fn remember(&self, kind: &Kvm) {
        let word = match kind {
            Kvm::Hardware => "hardware",
            Kvm::Pvm => "pvm",
            Kvm::Missing { .. } => return,
        };
        // One line in one write: a reader gets it whole or finds nonsense. If
        // it can't be written, the next command probes again.
        let _ = fs::write(&self.path, format!("{} {word}\n", self.boot_id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(dir: &Path, boot_id: &str) -> Known {
        Known {
            path: dir.join("kind"),
            boot_id: boot_id.to_owned(),
        }
    }

    #[test]
    fn the_kind_is_remembered_until_the_next_boot() {
        let dir = tempfile::tempdir().unwrap();
        let first = known(dir.path(), "first");
        assert_eq!(first.kind(), None);
        for kind in [Kvm::Hardware, Kvm::Pvm] {
            first.remember(&kind);
            assert_eq!(first.kind(), Some(kind));
        }
        assert_eq!(known(dir.path(), "second").kind(), None);
        fs::write(dir.path().join("kind"), "first").unwrap();
        assert_eq!(first.kind(), None);
    }

    #[test]
    fn a_pvm_host_is_refused_with_the_way_out() {
        assert!(refuse_all_but_hardware(Kvm::Hardware).is_ok());
        let refused = |kvm| refuse_all_but_hardware(kvm).unwrap_err().to_string();
        assert!(refused(Kvm::Pvm).contains("--on lab"));
        let missing = Kvm::Missing {
            why: "there is no /dev/kvm".to_owned(),
            cure: "get one",
        };
        let message = refused(missing);
        assert!(message.contains("--on lab") && message.contains("get one"));
    }
}

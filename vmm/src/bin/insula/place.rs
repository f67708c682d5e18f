//! Where guests run: on this machine's own KVM, or in the lab.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use guest_agent::client::wait_longer;
use images::kernel::Flavour;
use vmm::config::VcpuCount;
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
    /// Here, on a KVM that emulates their kernels.
    Pvm,
    /// In the lab.
    Lab,
}

/// What there is of KVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kvm {
    /// Guests run on it.
    Hardware,
    /// Guests' kernels are emulated an instruction at a time, for want of VT-x
    /// and SVM: ordinary machines do not boot.
    Pvm {
        /// Instructions that are emulated in a second.
        insn_per_s: u64,
    },
    /// There is none, or it can't be used; why, and the cure.
    Missing {
        /// What is wrong.
        why: String,
        /// What helps.
        cure: &'static str,
    },
}

impl Kvm {
    /// The kernel for guests with so many processors on it.
    pub(crate) fn kernel(&self, vcpus: VcpuCount) -> Flavour {
        match self {
            Self::Pvm { .. } => Flavour::for_pvm(vcpus.get()),
            Self::Hardware | Self::Missing { .. } => Flavour::Hardware,
        }
    }
}

/// The file by which the lab is known from inside.
const LAB_MARK: &str = "/etc/insula-lab.json";
/// KVM's device.
pub(crate) const DEVICE: &str = "/dev/kvm";

/// How many times longer an agent is waited for whose kernel is emulated.
const PVM_PATIENCE: u32 = 20;

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
        Some(On::Pvm) if is_lab() => Err(Failure::usage(
            "--on pvm: this is the lab, whose KVM is not of the PVM kind; leave the option out",
        )),
        Some(On::Pvm) => {
            wait_longer(PVM_PATIENCE);
            Ok(Place::Pvm)
        }
        None if is_lab() => Ok(Place::Hardware),
        None => match kvm() {
            Kvm::Hardware => Ok(Place::Hardware),
            Kvm::Pvm { .. } => {
                output.detail(
                    "KVM here is of the PVM kind: using the lab (--on pvm uses it all the same)",
                );
                Ok(Place::Lab)
            }
            Kvm::Missing { why, .. } => {
                output.detail(format!("{why}: using the lab"));
                Ok(Place::Lab)
            }
        },
    }
}

/// The KVM that a guest is to be started on. Refuses one that it would not
/// work on.
pub(crate) fn kvm_for(place: Place) -> Result<Kvm, Failure> {
    suitable(place, kvm())
}

fn suitable(place: Place, kvm: Kvm) -> Result<Kvm, Failure> {
    match (place, kvm) {
        (Place::Hardware, kvm @ Kvm::Hardware) | (Place::Pvm, kvm @ Kvm::Pvm { .. }) => Ok(kvm),
        (Place::Pvm, Kvm::Hardware) => Err(Failure::new(
            "this machine's /dev/kvm is not of the PVM kind: guests run on its processor; leave \
             out --on pvm",
        )),
        (_, Kvm::Pvm { .. }) => Err(Failure::new(
            "this machine's /dev/kvm is of the PVM kind (it emulates guests' kernels for want of \
             VT-x or SVM): say --on pvm to run guests on it, slowly, or run them in the lab, by \
             leaving out --on hardware or saying --on lab",
        )),
        (_, Kvm::Hardware) => Ok(Kvm::Hardware),
        (_, Kvm::Missing { why, cure }) => Err(Failure::new(format!(
            "{why}: {cure}; or run guests in the lab, by leaving out --on hardware or --on pvm, \
             or saying --on lab"
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
        KvmKind::Pvm {
            emulated_insn_per_s,
            ..
        } => Kvm::Pvm {
            insn_per_s: emulated_insn_per_s,
        },
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
        let mut words = text.split_whitespace();
        if words.next()? != self.boot_id {
            return None;
        }
        match (words.next()?, words.next()) {
            ("hardware", None) => Some(Kvm::Hardware),
            ("pvm", Some(rate)) => Some(Kvm::Pvm {
                insn_per_s: rate.parse().ok()?,
            }),
            _ => None,
        }
    }

    fn remember(&self, kind: &Kvm) {
        let words = match kind {
            Kvm::Hardware => "hardware".to_owned(),
            Kvm::Pvm { insn_per_s } => format!("pvm {insn_per_s}"),
            Kvm::Missing { .. } => return,
        };
        // One line in one write: a reader gets it whole or finds nonsense. If
        // it can't be written, the next command probes again.
        let _ = fs::write(&self.path, format!("{} {words}\n", self.boot_id));
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
        let pvm = Kvm::Pvm {
            insn_per_s: 1_500_000,
        };
        for kind in [Kvm::Hardware, pvm] {
            first.remember(&kind);
            assert_eq!(first.kind(), Some(kind));
        }
        assert_eq!(known(dir.path(), "second").kind(), None);
        fs::write(dir.path().join("kind"), "first").unwrap();
        assert_eq!(first.kind(), None);
    }

    #[test]
    fn each_place_has_its_kvm_and_a_way_out_of_the_others() {
        let pvm = Kvm::Pvm { insn_per_s: 1 };
        assert_eq!(
            suitable(Place::Hardware, Kvm::Hardware).ok(),
            Some(Kvm::Hardware)
        );
        assert_eq!(suitable(Place::Pvm, pvm.clone()).ok(), Some(pvm.clone()));
        let refused = |place, kvm| suitable(place, kvm).unwrap_err().to_string();
        let message = refused(Place::Hardware, pvm);
        assert!(message.contains("--on lab") && message.contains("--on pvm"));
        assert!(refused(Place::Pvm, Kvm::Hardware).contains("leave out --on pvm"));
        let missing = Kvm::Missing {
            why: "there is no /dev/kvm".to_owned(),
            cure: "get one",
        };
        let message = refused(Place::Pvm, missing);
        assert!(message.contains("--on lab") && message.contains("get one"));
    }
}

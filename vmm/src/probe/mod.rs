//! What kind of KVM the host has, found out by running micro-guests of a few
//! instructions.
//!
//! Two kinds are known. On *hardware* (VT-x, SVM) guests run on the processor.
//! On a *PVM* host, which needs neither, a guest's user code does, but its
//! supervisor code is carried out by KVM's instruction emulator: slowly, not
//! all of it, and `SYSCALL` does not arrive in the kernel. An ordinary machine
//! does not boot there.

mod image;
mod micro_guest;

use std::fmt;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use kvm_ioctls::Kvm;
use serde::Serialize;

use self::micro_guest::{MicroGuestError, MicroGuests, Outcome};
use crate::kvm::{self, KvmError};
use crate::vcpu::cpuid;

/// Time after which a micro-guest is stuck. All together take milliseconds;
/// seconds on an emulated host that has to share its processor.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// Version of KVM's interface, where it could be asked.
    pub api_version: Option<i32>,
    /// The capabilities that a machine needs.
    pub capabilities: Vec<Capability>,
    /// The kind.
    pub kind: KvmKind,
}

/// A capability that a machine needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// Its name in KVM's documentation.
    pub name: &'static str,
    /// What it is needed for.
    pub purpose: &'static str,
    /// Whether the host has it.
    pub present: bool,
}

/// A kind of KVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum KvmKind {
    /// Guests run on the processor.
    Hardware {
        /// The processor's vendor as CPUID names it.
        vendor: String,
    },
    /// Guests' supervisor code is emulated.
    Pvm {
        /// Supervisor instructions that are emulated in a second.
        emulated_insn_per_s: u64,
        /// What a machine would have to do itself.
        repairs: Vec<Repair>,
    },
    /// No guest runs.
    Unusable {
        /// Why, and what to do.
        reason: String,
    },
}

/// Something that this KVM leaves to the machine process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Repair {
    /// `SYSCALL` does not arrive in the guest's kernel.
    Syscall,
    /// The emulator refuses `INT3`.
    Int3,
    /// The emulator refuses `FWAIT`.
    Fwait,
    /// The emulator refuses `POPCNT`.
    Popcnt,
    /// The emulator refuses `CMPXCHG16B`.
    Cmpxchg16b,
}

impl KvmKind {
    /// Whether an ordinary machine boots on it.
    pub fn is_hardware(&self) -> bool {
        matches!(self, Self::Hardware { .. })
    }
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syscall => "SYSCALL",
            Self::Int3 => "INT3",
            Self::Fwait => "FWAIT",
            Self::Popcnt => "POPCNT",
            Self::Cmpxchg16b => "CMPXCHG16B",
        })
    }
}

impl fmt::Display for KvmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware { vendor } => write!(f, "hardware virtualization ({vendor})"),
            Self::Pvm {
                emulated_insn_per_s,
                repairs,
            } => {
                let millions = *emulated_insn_per_s as f64 / 1e6;
                write!(
                    f,
                    "PVM: supervisor code is emulated, {millions:.1} million instructions a second"
                )?;
                for (index, repair) in repairs.iter().enumerate() {
                    let before = if index == 0 {
                        "; does not work: "
                    } else {
                        ", "
                    };
                    write!(f, "{before}{repair}")?;
                }
                Ok(())
            }
            Self::Unusable { reason } => write!(f, "unusable: {reason}"),
        }
    }
}

/// Looks at `/dev/kvm` and runs the micro-guests: some milliseconds.
pub fn probe() -> Probe {
    let kvm = match kvm::open() {
        Ok(kvm) => kvm,
        Err(error) => {
            let api_version = match error {
                KvmError::ApiVersion(version) => Some(version),
                _ => None,
            };
            let kind = KvmKind::Unusable {
                reason: error.to_string(),
            };
            return Probe {
                api_version,
                capabilities: Vec::new(),
                kind,
            };
        }
    };
    let capabilities: Vec<Capability> = kvm::REQUIRED
        .into_iter()
        .map(|(capability, name, purpose)| Capability {
            name,
            purpose,
            present: kvm.check_extension(capability),
        })
        .collect();
    let kind = match capabilities.iter().find(|capability| !capability.present) {
        None => kind(kvm),
        Some(Capability { name, purpose, .. }) => KvmKind::Unusable {
            reason: KvmError::Capability { name, purpose }.to_string(),
        },
    };
    Probe {
        api_version: Some(kvm::API_VERSION),
        capabilities,
        kind,
    }
}

/// Runs the micro-guests in a thread of their own, which is left behind if one
/// of them never comes back.
fn kind(kvm: Kvm) -> KvmKind {
    let (send, receive) = mpsc::sync_channel(1);
    let run = move || {
        // Nobody listens only after the patience is over.
        let _ = send.send(run_all(&kvm));
    };
    let unusable = |reason: String| KvmKind::Unusable { reason };
    if let Err(error) = thread::Builder::new().spawn(run) {
        return unusable(format!(
            "cannot start a thread to run micro-guests in: {error}"
        ));
    }
    match receive.recv_timeout(PATIENCE) {
        Ok(Ok(kind)) => kind,
        Ok(Err(error)) => unusable(error.to_string()),
        Err(_) => unusable("a guest of a few instructions does not end".to_owned()),
    }
}

fn run_all(kvm: &Kvm) -> Result<KvmKind, MicroGuestError> {
    let mut guests = MicroGuests::new(kvm)?;
    let rate = match guests.supervisor_rate()? {
        Ok(rate) => rate,
        Err(outcome) => {
            let reason = format!("a loop of two instructions ended with: {outcome}");
            return Ok(KvmKind::Unusable { reason });
        }
    };
    let mut repairs = Vec::new();
    if guests.syscall()? != Outcome::Arrived {
        repairs.push(Repair::Syscall);
    }
    for (repair, code) in image::INSTRUCTIONS {
        if guests.instruction(code)? != Outcome::Arrived {
            repairs.push(repair);
        }
    }
    // What guests can do decides, and no clock: a busy host is slow, too.
    if repairs.is_empty() {
        let name = cpuid::vendor(guests.cpuid());
        return Ok(KvmKind::Hardware {
            vendor: String::from_utf8_lossy(&name).into_owned(),
        });
    }
    Ok(KvmKind::Pvm {
        emulated_insn_per_s: rate,
        repairs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_hosts_kvm_has_a_kind() {
        // Whatever the host is, the probe ends and says something sensible.
        let found = probe();
        match &found.kind {
            KvmKind::Hardware { vendor } => assert_eq!(vendor.len(), 12),
            KvmKind::Pvm { repairs, .. } => assert!(!repairs.is_empty()),
            KvmKind::Unusable { reason } => assert!(!reason.is_empty()),
        }
        assert!(!found.kind.to_string().is_empty());
    }

    #[test]
    fn report_has_a_flat_kind() {
        let kind = KvmKind::Pvm {
            emulated_insn_per_s: 1_500_000,
            repairs: vec![Repair::Int3],
        };
        assert_eq!(
            serde_json::to_string(&kind).unwrap(),
            r#"{"kind":"pvm","emulated_insn_per_s":1500000,"repairs":["int3"]}"#
        );
        assert_eq!(
            kind.to_string(),
            "PVM: supervisor code is emulated, 1.5 million instructions a second; \
             does not work: INT3"
        );
    }
}

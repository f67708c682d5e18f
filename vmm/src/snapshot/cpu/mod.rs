//! Whether a guest that was saved on one processor can go on on another.
//!
//! A guest asks for the processor's features once, when it boots, and uses
//! them ever after: a host that lacks one would end it with an invalid opcode
//! at any time. So each feature bit that the guest was shown must be one that
//! this host's KVM supports.

mod features;

use kvm_bindings::kvm_cpuid_entry2;
use thiserror::Error;

use self::features::{FEATURES, Register};
use crate::vcpu::cpuid;

/// Why this host cannot run the guest.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CpuMismatch {
    /// Another maker.
    #[error(
        "the snapshot was taken on a processor of {saved}, this host has one of {host}: restore it \
         on a host of the same vendor"
    )]
    Vendor {
        /// As CPUID names it.
        saved: String,
        /// This host's.
        host: String,
    },
    /// Features that the guest was shown are not there.
    #[error(
        "this host's processor, or its KVM, lacks what the guest was shown: {}; restore the \
         snapshot on a host that has it", missing.join(", ")
    )]
    Features {
        /// Their names, as in /proc/cpuinfo where Linux has one.
        missing: Vec<String>,
    },
    /// The guest may use addresses that this processor has not.
    #[error(
        "the guest was shown {saved}-bit {kind} addresses, but this host has {host}-bit ones: \
         restore the snapshot on a host with as many"
    )]
    Addresses {
        /// "physical" or "virtual".
        kind: &'static str,
        /// What it was shown.
        saved: u32,
        /// What the host has.
        host: u32,
    },
    /// A part of the extended state lies elsewhere.
    #[error(
        "part {component} of the extended state (XSAVE) is laid out differently on this host: \
         restore the snapshot on a host of the same kind"
    )]
    XsaveLayout {
        /// Its number in XCR0.
        component: u32,
    },
    /// All features are there, but the processor is another one.
    #[error(
        "the snapshot was taken on a processor of family {:#x} model {:#x}, this host has family \
         {:#x} model {:#x}: the guest chose its mitigations of processor flaws for the former. \
         Force it only for a guest that runs nothing that you do not trust",
        saved.0, saved.1, host.0, host.1
    )]
    Model {
        /// Family and model.
        saved: (u32, u32),
        /// This host's.
        host: (u32, u32),
    },
}

/// Checks that `host`, what KVM supports here, offers what the guest was shown:
/// `saved`. With `force`, another model of the same vendor is accepted if it
/// has every feature.
///
/// # Errors
/// [`CpuMismatch`], the gravest first.
pub fn check(
    saved: &[kvm_cpuid_entry2],
    host: &[kvm_cpuid_entry2],
    force: bool,
) -> Result<(), CpuMismatch> {
    let vendors = (cpuid::vendor(saved), cpuid::vendor(host));
    if vendors.0 != vendors.1 {
        let name = |vendor: [u8; 12]| String::from_utf8_lossy(&vendor).into_owned();
        return Err(CpuMismatch::Vendor {
            saved: name(vendors.0),
            host: name(vendors.1),
        });
    }
    let missing = missing_features(saved, host);
    if !missing.is_empty() {
        return Err(CpuMismatch::Features { missing });
    }
    check_addresses(saved, host)?;
    check_xsave_layout(saved, host)?;
    let models = (model(saved), model(host));
    if models.0 != models.1 && !force {
        return Err(CpuMismatch::Model {
            saved: models.0,
            host: models.1,
        });
    }
    Ok(())
}

fn missing_features(saved: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Vec<String> {
    let mut missing = Vec::new();
    for word in &FEATURES {
        let shown = word.read(saved) & word.relevant;
        let mut lacking = shown & !word.read(host);
        while lacking != 0 {
            let bit = lacking.trailing_zeros();
            lacking &= lacking - 1;
            missing.push(word.name(bit));
        }
    }
    missing
}

fn check_addresses(
    saved: &[kvm_cpuid_entry2],
    host: &[kvm_cpuid_entry2],
) -> Result<(), CpuMismatch> {
    let widths = |entries| Register::Eax.read(entries, 0x8000_0008, 0);
    let (saved, host) = (widths(saved), widths(host));
    for (kind, shift) in [("physical", 0), ("virtual", 8)] {
        let (saved, host) = (saved >> shift & 0xff, host >> shift & 0xff);
        if saved > host {
            return Err(CpuMismatch::Addresses { kind, saved, host });
        }
    }
    Ok(())
}

/// Size and offset of each part that the guest can enable (leaf 0xD) must be
/// the same: the saved state is a copy of it.
fn check_xsave_layout(
    saved: &[kvm_cpuid_entry2],
    host: &[kvm_cpuid_entry2],
) -> Result<(), CpuMismatch> {
    let features = cpuid::xsave_features(saved);
    // 0 and 1, x87 and SSE, are where they always were; 63 is no part.
    for component in (2..63).filter(|bit| features & 1 << bit != 0) {
        let place = |entries| {
            let read = |register: Register| register.read(entries, 0xd, component);
            (read(Register::Eax), read(Register::Ebx))
        };
        if place(saved) != place(host) {
            return Err(CpuMismatch::XsaveLayout { component });
        }
    }
    Ok(())
}

/// Display family and model (Intel SDM volume 2A, CPUID; AMD has the same).
fn model(entries: &[kvm_cpuid_entry2]) -> (u32, u32) {
    let signature = Register::Eax.read(entries, 1, 0);
    let family = signature >> 8 & 0xf;
    let model = signature >> 4 & 0xf;
    let extended_model = signature >> 12 & 0xf0;
    match family {
        0xf => (family + (signature >> 20 & 0xff), model | extended_model),
        6 => (family, model | extended_model),
        _ => (family, model),
    }
}

#[cfg(test)]
mod tests;

//! The host's KVM: opening it, and making sure that it can do what we need.

pub mod plain;
pub mod supported;

use std::ffi::CStr;
use std::io;
use std::os::fd::FromRawFd;

use kvm_ioctls::{Cap, Kvm};
use thiserror::Error;

/// Where KVM is.
pub const DEVICE: &CStr = c"/dev/kvm";

/// The only stable version of KVM's interface.
pub const API_VERSION: i32 = 12;

/// Why the host's KVM cannot be used.
#[derive(Debug, Error)]
pub enum KvmError {
    /// There is no device.
    #[error(
        "/dev/kvm does not exist: this processor or virtual machine offers no virtualization, \
             it is switched off in the firmware, or the module is not loaded (modprobe kvm-intel \
             or kvm-amd); in a container, pass --device /dev/kvm. Without KVM, use --on lab"
    )]
    Missing,
    /// It may not be opened.
    #[error(
        "/dev/kvm may not be opened by this user: run as root, or join its group \
             (usermod -aG kvm $USER, then log in again)"
    )]
    Denied,
    /// It could not be opened for another reason.
    #[error("cannot open /dev/kvm: {0}")]
    Open(#[source] io::Error),
    /// It speaks another version.
    #[error("/dev/kvm has API version {0}, but {API_VERSION} is needed: is it really KVM?")]
    ApiVersion(i32),
    /// It lacks something.
    #[error("this host's KVM lacks {name} ({purpose}): use a newer host kernel")]
    Capability {
        /// The capability's name in KVM's documentation.
        name: &'static str,
        /// What it is needed for.
        purpose: &'static str,
    },
    /// A request failed.
    #[error("KVM refuses to {what}: {source}")]
    Request {
        /// What was asked for.
        what: &'static str,
        /// What the system said.
        source: kvm_ioctls::Error,
    },
}

/// What a machine cannot do without: capability, its name, its purpose.
pub const REQUIRED: [(Cap, &str, &str); 8] = [
    (
        Cap::Irqchip,
        "KVM_CAP_IRQCHIP",
        "interrupt controllers in the kernel",
    ),
    (
        Cap::UserMemory,
        "KVM_CAP_USER_MEMORY",
        "guest memory from this process",
    ),
    (
        Cap::SetTssAddr,
        "KVM_CAP_SET_TSS_ADDR",
        "real mode on Intel processors",
    ),
    (
        Cap::ExtCpuid,
        "KVM_CAP_EXT_CPUID",
        "choosing the guest's CPUID",
    ),
    (Cap::Pit2, "KVM_CAP_PIT2", "the timer in the kernel"),
    (Cap::Irqfd, "KVM_CAP_IRQFD", "device interrupts"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD", "device notifications"),
    IMMEDIATE_EXIT,
];

const IMMEDIATE_EXIT: (Cap, &str, &str) = (
    Cap::ImmediateExit,
    "KVM_CAP_IMMEDIATE_EXIT",
    "stopping a virtual processor",
);

/// Opens `/dev/kvm`; the permission bits alone may lie.
///
/// # Errors
/// [`KvmError`], which says what to do.
pub fn open() -> Result<Kvm, KvmError> {
    let fd = Kvm::open_with_cloexec_at(DEVICE, true).map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => KvmError::Missing,
        libc::EACCES | libc::EPERM => KvmError::Denied,
        errno => KvmError::Open(io::Error::from_raw_os_error(errno)),
    })?;
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    let kvm = unsafe { Kvm::from_raw_fd(fd) };
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        other => Err(KvmError::ApiVersion(other)),
    }
}

/// The capabilities that a machine needs and this host lacks.
pub fn missing_capabilities(kvm: &Kvm) -> impl Iterator<Item = (&'static str, &'static str)> {
    REQUIRED
        .into_iter()
        .filter(|(capability, ..)| !kvm.check_extension(*capability))
        .map(|(_, name, purpose)| (name, purpose))
}

/// Opens `/dev/kvm` and checks that everything needed is there.
///
/// # Errors
/// [`KvmError`], which says what to do.
pub fn open_checked() -> Result<Kvm, KvmError> {
    let kvm = open()?;
    let missing = missing_capabilities(&kvm).next();
    match missing {
        None => Ok(kvm),
        Some((name, purpose)) => Err(KvmError::Capability { name, purpose }),
    }
}

/// Opens `/dev/kvm` for somebody who will ask at once for everything that is
/// needed, and is told which part is refused: checked is only what no request
/// would show.
///
/// # Errors
/// [`KvmError`], which says what to do.
pub fn open_expecting_all() -> Result<Kvm, KvmError> {
    let kvm = open()?;
    let (capability, name, purpose) = IMMEDIATE_EXIT;
    if !kvm.check_extension(capability) {
        return Err(KvmError::Capability { name, purpose });
    }
    Ok(kvm)
}

/// For `map_err` on a request: names what was asked for.
pub(crate) fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Request { what, source }
}

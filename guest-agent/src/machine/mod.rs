//! Processes outside of all VPSs: on the host that the agent serves, or in
//! the root of a microVM.

mod boot_id;
mod cgroup;
mod overlay;
mod spawn;

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use crate::protocol::Failure;

pub(crate) use boot_id::renew as renew_boot_id;
pub use cgroup::SessionCgroup;
pub use overlay::MachineOverlay;
pub use spawn::{Place, spawn};

/// The root file system that machine sessions run in, where it is not the
/// agent's own.
#[derive(Debug)]
pub struct MachineRoot {
    /// A mount namespace whose root is that file system.
    pub namespace: OwnedFd,
    /// Its root directory, from which terminals and files are opened.
    pub directory: OwnedFd,
}

/// Where sessions outside of VPSs run.
#[derive(Debug)]
pub enum Machine {
    /// In the agent's own root: the host's.
    Own,
    /// Nowhere, and why.
    None(Failure),
    /// In that root.
    Other(MachineRoot),
    /// In a root that is made when it is first needed.
    Overlay(MachineOverlay, Option<MachineRoot>),
}

impl Machine {
    /// The root to run in; `None` is the agent's own.
    ///
    /// # Errors
    /// It could not be made; the next call tries again.
    pub fn root(&mut self) -> Result<Option<&MachineRoot>, Failure> {
        match self {
            Self::Own => Ok(None),
            Self::None(why) => Err(why.clone()),
            Self::Other(root) => Ok(Some(root)),
            Self::Overlay(overlay, ready) => {
                if ready.is_none() {
                    *ready = Some(overlay.prepare()?);
                }
                Ok(ready.as_ref())
            }
        }
    }
}

/// Opens `path` below `root` (or below `/`), as a process there would.
///
/// # Errors
/// The kernel's.
pub(crate) fn open_in(
    root: Option<&MachineRoot>,
    path: &str,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match root {
        Some(root) => openat2(&root.directory, path, flags, mode, inside),
        None => openat(CWD, path, flags, mode),
    }
}

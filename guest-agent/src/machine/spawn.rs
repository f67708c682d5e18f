//! Starting a process outside of all VPSs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{MachineRoot, open_in};
use crate::protocol::{Exec, Terminal};
use crate::vps::{Error, Io, Process, exec, launch};

/// Where a process outside of all VPSs runs.
#[derive(Debug)]
pub struct Place<'a> {
    /// Its root; `None` is the agent's own.
    pub root: Option<&'a MachineRoot>,
    /// Its cgroup; `None` is the agent's own.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The agent is spared by the OOM killer, and the process is not to be.
    pub protected: bool,
}

/// Starts `exec` outside of all VPSs and returns when it has been executed.
/// `exec.target` and `exec.terminal` are not looked at: `io` says.
///
/// # Errors
/// The command is not found or not executable, an unknown user, a missing
/// directory, or a full system.
pub fn spawn(place: &Place<'_>, exec: &Exec, io: &Io<'_>) -> Result<Process, Error> {
    let (master, slave) = match io {
        Io::Terminal(size) => {
            let pair = open_terminal(place.root, *size);
            let (master, slave) = pair.map_err(Error::system("open terminal in", "the machine"))?;
            (Some(master), Some(slave))
        }
        Io::Inherit | Io::Files(_) => (None, None),
    };
    let beside = exec::Beside {
        root: place.root.map(|root| root.namespace.as_fd()),
        cgroup: place.cgroup,
        oom_score_adj: place.protected.then_some(0),
    };
    let process = exec::exec_beside(&beside, exec, io, slave)?;
    Ok(Process {
        terminal: master,
        ..process
    })
}

fn open_terminal(root: Option<&MachineRoot>, size: Terminal) -> Result<(OwnedFd, OwnedFd), Errno> {
    // Only the root user may open the one in /dev/pts, on most systems.
    let path = root.map_or("/dev/ptmx", |_| "dev/pts/ptmx");
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = open_in(root, path, flags, Mode::empty())?;
    let slave = launch::open_terminal(&master, size, None)?;
    Ok((master, slave))
}

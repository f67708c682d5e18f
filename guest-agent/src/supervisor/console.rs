//! The consoles of VPSs: their terminals while they run, and what they said.

use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::ioctl_fionbio;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};

use super::Supervisor;
use crate::protocol::{Failure, Name};
use crate::server::console::Ring;
use crate::vps::Running;

/// A VPS's console.
#[derive(Debug, Default)]
pub(crate) struct Console {
    pub(crate) ring: Ring,
    pub(crate) open: Option<OpenConsole>,
}

/// The terminal behind a console while the VPS runs.
#[derive(Debug)]
pub(crate) struct OpenConsole {
    pub(crate) master: OwnedFd,
    /// Kept open, so that a VPS that closes its console does not hang it up.
    _slave: OwnedFd,
    pub(crate) number: u32,
    pub(crate) registered: EventFlags,
}

impl Supervisor {
    /// The console of a VPS.
    pub(crate) fn console(&mut self, name: &Name) -> Result<&mut Console, Failure> {
        self.record(name).map(|record| &mut record.console)
    }

    /// Whether a VPS's console has something at or behind `position`.
    pub(crate) fn console_has(&self, name: &Name, position: u64) -> bool {
        self.records
            .get(name)
            .is_some_and(|record| record.console.ring.has(position))
    }

    /// The VPS whose console has that number.
    pub(crate) fn console_owner(&self, number: u32) -> Option<Name> {
        self.records
            .iter()
            .find(|(_, record)| {
                record
                    .console
                    .open
                    .as_ref()
                    .is_some_and(|open| open.number == number)
            })
            .map(|(name, _)| name.clone())
    }
}

/// Opens the console of a VPS that has just been started.
pub(super) fn open_console(running: &mut Running, number: u32) -> Option<OpenConsole> {
    let master = running.init.terminal.take()?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags).ok()?;
    ioctl_fionbio(&master, true).ok()?;
    Some(OpenConsole {
        master,
        _slave: slave,
        number,
        registered: EventFlags::empty(),
    })
}

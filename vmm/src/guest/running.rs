//! Guests that run, and how they are stopped.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use guest_agent::client::{Client, Endpoint};
use rustix::process::Signal;

use super::child::Child;
use super::error::{Ended, GuestError};
use super::launch::{ended, kill};
use super::process::Process;
use super::rundir::GuestDir;

/// How long the machine process may take to clean up after `SIGTERM`.
const TERM_PATIENCE: Duration = Duration::from_secs(3);
/// How long the kernel may take to bury a killed process.
const KILL_PATIENCE: Duration = Duration::from_secs(20);

/// A guest that was started here.
///
/// Dropping it stops an ephemeral guest by force and leaves any other running.
#[derive(Debug)]
pub struct Guest {
    dir: GuestDir,
    child: Option<Child>,
    ephemeral: bool,
    spans: BTreeMap<String, u64>,
}

impl Guest {
    pub(super) fn new(
        dir: GuestDir,
        child: Child,
        ephemeral: bool,
        spans: BTreeMap<String, u64>,
    ) -> Self {
        Self {
            dir,
            child: Some(child),
            ephemeral,
            spans,
        }
    }

    /// When it reached each step of its start, in nanoseconds of the host's
    /// `CLOCK_MONOTONIC`: `process_start`, `kvm_ready`, `memory_ready`,
    /// `kernel_loaded`, `first_instruction`, `init`, `agent_ready`.
    pub fn spans(&self) -> &BTreeMap<String, u64> {
        &self.spans
    }

    /// Its directory.
    pub fn dir(&self) -> &GuestDir {
        &self.dir
    }

    /// Where its agent is to be dialled.
    pub fn endpoint(&self) -> Endpoint {
        self.dir.endpoint()
    }

    /// The machine process.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Stops it as [`GuestDir::stop`] does.
    ///
    /// # Errors
    /// As [`GuestDir::stop`].
    pub fn stop(mut self, patience: Duration) -> Result<Ended, GuestError> {
        self.ephemeral = false;
        match self.child.take() {
            Some(child) => stop(&self.dir, Some(child), patience),
            None => self.dir.stop(patience),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.ephemeral {
            if let Some(child) = &mut self.child {
                kill(child);
            }
            // What could not be removed, the next command removes.
            let _ = release(&self.dir);
        }
    }
}

impl GuestDir {
    /// Where the guest's agent is to be dialled.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::guest(self.vsock_path())
    }

    /// Stops the guest and removes its directory: asks its agent to power
    /// off, ends the machine process after `patience` (at once when that is
    /// zero), and kills it when even that does not help. A dead guest is just
    /// cleaned away.
    ///
    /// # Errors
    /// [`GuestError::Stuck`] for a process that can't be killed.
    pub fn stop(&self, patience: Duration) -> Result<Ended, GuestError> {
        stop(self, None, patience)
    }
}

fn stop(dir: &GuestDir, child: Option<Child>, patience: Duration) -> Result<Ended, GuestError> {
    let process = child
        .as_ref()
        .map(Child::id)
        .or_else(|| dir.pid())
        .and_then(|pid| Some((pid, Process::open(pid, dir.path())?)));
    let mut forced = None;
    if let Some((pid, process)) = process {
        if !patience.is_zero() && dir.is_paused() {
            // It cannot power off while it stands still; if it cannot go on
            // either, it is ended below.
            let _ = dir.resume();
        }
        let asked = !patience.is_zero() && ask(dir, patience);
        if !(asked && process.wait(patience)) {
            forced = Some(Ended::Signal(15));
            process.signal(Signal::TERM);
            let kill_at_once = patience.is_zero();
            if kill_at_once || !process.wait(TERM_PATIENCE) {
                forced = Some(Ended::Signal(9));
                process.signal(Signal::KILL);
            }
            if !process.wait(KILL_PATIENCE) {
                return Err(GuestError::Stuck {
                    name: dir.name().clone(),
                    pid,
                });
            }
        }
    }
    let status = child.and_then(|mut child| child.wait().ok());
    // A process that ended by itself said how; one that was forced did not.
    let ended = status
        .map(ended)
        .or(forced)
        .or_else(|| dir.ended())
        .unwrap_or(Ended::Signal(9));
    release(dir)?;
    Ok(ended)
}

/// Asks the agent to power off; whether it agreed.
fn ask(dir: &GuestDir, patience: Duration) -> bool {
    Client::connect_within(&dir.endpoint(), patience)
        .and_then(|mut client| client.power_off())
        .is_ok()
}

/// Removes the directory of a process that has ended. The lock can be held a
/// moment longer: by a starter, who has the same descriptor, or by a child of
/// another thread that has not yet come to its exec.
pub(super) fn release(dir: &GuestDir) -> Result<(), GuestError> {
    let end = Instant::now() + TERM_PATIENCE;
    loop {
        match dir.root().clean(dir) {
            Err(GuestError::NameTaken { .. }) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

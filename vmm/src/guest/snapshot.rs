//! Taking a snapshot of a guest.

use std::path::Path;
use std::time::Duration;

use guest_agent::client::Client;

use super::error::GuestError;
use super::restore::keep_record;
use super::rundir::GuestDir;
use crate::control::{Operation, SnapshotWritten};

/// How long the agent may take to hold its processes and write disks out.
const AGENT_PATIENCE: Duration = Duration::from_secs(30);
/// How long the machine process may take to write it all.
const PATIENCE: Duration = Duration::from_mins(10);

/// What a snapshot is to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// Only what changed since the guest's last snapshot, which it builds on.
    pub incremental: bool,
    /// Note what changes from now on, for an incremental one to come.
    pub track: bool,
    /// End the guest with it: nothing happens in it that is not in the
    /// snapshot.
    pub stop: bool,
}

impl GuestDir {
    /// Takes a snapshot of the guest into `directory`, which must be an
    /// absolute path. The guest's processes are held for it, so that in a clone
    /// none runs before it has random numbers of its own; they go on in the
    /// original whatever comes of it.
    ///
    /// # Errors
    /// [`GuestError::Paused`], [`GuestError::Agent`] when the agent does not
    /// hold the processes, [`GuestError::Control`] when the snapshot was not
    /// taken: then there is nothing of it, and the guest goes on.
    pub fn snapshot(
        &self,
        directory: &Path,
        options: SnapshotOptions,
    ) -> Result<SnapshotWritten, GuestError> {
        self.check_running()?;
        let refused = |source| GuestError::Agent {
            name: self.name().clone(),
            source: Box::new(source),
        };
        let mut agent =
            Client::connect_within(&self.endpoint(), AGENT_PATIENCE).map_err(refused)?;
        agent.suspend().map_err(refused)?;
        let taken = self.take(directory, options);
        if taken.is_err() || !options.stop {
            // If it is not heard now, the agent ends the suspension itself.
            let _ = agent.resume();
        }
        let done = taken?;
        keep_record(self, directory);
        if options.stop {
            self.stop(Duration::ZERO)?;
        }
        Ok(done)
    }

    fn take(
        &self,
        directory: &Path,
        options: SnapshotOptions,
    ) -> Result<SnapshotWritten, GuestError> {
        let operation = Operation::Snapshot {
            directory: directory.to_owned(),
            incremental: options.incremental,
            track: options.track,
            hold: options.stop,
        };
        let done = self.order(operation, PATIENCE)?;
        done.snapshot.ok_or_else(|| GuestError::Snapshot {
            name: self.name().clone(),
            reason: "its machine process took none".to_owned(),
        })
    }
}

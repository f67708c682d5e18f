//! Orders to a guest's machine process.

use std::time::Duration;

use super::error::GuestError;
use super::rundir::GuestDir;
use super::usage;
use crate::control::{AddressRange, Client, ControlError, Counts, Done, Operation};

/// How long the machine process may take to pause or to go on.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to answer a question. It is busy with a snapshot at
/// most.
const ASKING_PATIENCE: Duration = Duration::from_secs(5);

impl GuestDir {
    /// Has the guest stand still. To it, no time passes until it is resumed.
    ///
    /// # Errors
    /// [`GuestError::Control`].
    pub fn pause(&self) -> Result<Done, GuestError> {
        self.order(Operation::Pause, PATIENCE)
    }

    /// Has the guest go on.
    ///
    /// # Errors
    /// [`GuestError::Control`].
    pub fn resume(&self) -> Result<Done, GuestError> {
        self.order(Operation::Resume, PATIENCE)
    }

    /// What has been counted of the guest since its machine process started.
    ///
    /// # Errors
    /// [`GuestError::Control`].
    pub fn counts(&self) -> Result<Counts, GuestError> {
        Client::connect(&self.control_path())
            .and_then(|mut machine| machine.counts(ASKING_PATIENCE))
            .map_err(|source| self.refused(source))
    }

    /// Where the machine process has the guest's memory.
    ///
    /// # Errors
    /// [`GuestError::Control`].
    pub(super) fn memory_mappings(&self) -> Result<Vec<AddressRange>, GuestError> {
        Client::connect(&self.control_path())
            .and_then(|mut machine| machine.memory(ASKING_PATIENCE))
            .map_err(|source| self.refused(source))
    }

    /// The processor time of the guest's virtual processors, while it lives.
    pub fn vcpu_time(&self) -> Option<Duration> {
        usage::vcpu_time(self.pid()?)
    }

    /// Has the machine process do something, and waits so long for it.
    pub(super) fn order(
        &self,
        operation: Operation,
        patience: Duration,
    ) -> Result<Done, GuestError> {
        Client::connect(&self.control_path())
            .and_then(|mut machine| machine.perform(operation, patience))
            .map_err(|source| self.refused(source))
    }

    fn refused(&self, source: ControlError) -> GuestError {
        GuestError::Control {
            name: self.name().clone(),
            source,
        }
    }
}

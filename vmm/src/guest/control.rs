//! Orders to a guest's machine process.

use std::time::Duration;

use super::error::GuestError;
use super::rundir::GuestDir;
use crate::control::{Client, ControlError, Done, Operation};

/// How long the machine process may take to pause or to go on.
const PATIENCE: Duration = Duration::from_secs(30);

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

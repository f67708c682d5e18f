//! Performs what is asked for on the control socket.

use std::sync::mpsc::Receiver;

use super::error::BuildError;
use super::run::Run;
use crate::control::{Answer, Done, FailureKind, Incoming, MachineState, Operation};

/// What is asked for on the control socket, one after the other.
pub(super) struct Orders {
    incoming: Receiver<Incoming>,
}

impl Orders {
    pub(super) fn new(incoming: Receiver<Incoming>) -> Self {
        Self { incoming }
    }

    /// Does what has been asked for until now.
    ///
    /// # Errors
    /// The machine cannot go on. Whoever asked has been told.
    pub(super) fn perform(&mut self, run: &mut Run<'_>) -> Result<(), BuildError> {
        while let Ok(order) = self.incoming.try_recv() {
            let was_paused = run.is_paused();
            let done = match &order.operation {
                Operation::Status => Ok(()),
                Operation::Pause => run.pause().map_err(BuildError::from),
                Operation::Resume => run.resume().map(drop),
                Operation::Snapshot { .. } => {
                    let message = "this machine process cannot take snapshots";
                    order.answer(&Answer::error(FailureKind::Failed, message));
                    continue;
                }
            };
            if run.is_paused() != was_paused {
                run.report();
            }
            match done {
                Ok(()) => order.answer(&Answer::done(Done {
                    state: state(run),
                    snapshot: None,
                })),
                Err(error) => {
                    order.answer(&Answer::error(FailureKind::Failed, error.to_string()));
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

fn state(run: &Run<'_>) -> MachineState {
    if run.is_paused() {
        MachineState::Paused
    } else {
        MachineState::Running
    }
}

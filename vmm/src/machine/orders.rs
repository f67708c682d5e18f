//! Performs what is asked for on the control socket.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread::Builder;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::error::BuildError;
use super::run::Run;
use super::take::{TakeError, Unfinished};
use crate::control::{
    Answer, Done, FailureKind, Incoming, MachineState, Operation, SnapshotWritten,
};
use crate::snapshot::{SnapshotError, Taken};

/// What is asked for on the control socket, one after the other.
pub(super) struct Orders {
    incoming: Receiver<Incoming>,
    /// A snapshot that is being brought to disk while the machine runs.
    finishing: Option<Finishing>,
    finished: Arc<EventFd>,
}

struct Finishing {
    /// Gets what came of it, before the event loop is woken.
    outcome: Receiver<Result<Taken, SnapshotError>>,
    order: Incoming,
    paused: Duration,
    /// The machine is held for its end, which does not come without a snapshot.
    resume_on_failure: bool,
}

impl Orders {
    /// For the operations that come out of `incoming`.
    ///
    /// # Errors
    /// The process is out of file descriptors.
    pub(super) fn new(incoming: Receiver<Incoming>) -> io::Result<Self> {
        Ok(Self {
            incoming,
            finishing: None,
            finished: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?),
        })
    }

    /// Wakes the event loop when there is something to do that no client asked
    /// for just then.
    pub(super) fn waker(&self) -> impl MutEventSubscriber + use<> {
        Waker(Arc::clone(&self.finished))
    }

    /// Does what has been asked for until now.
    ///
    /// # Errors
    /// The machine cannot go on. Whoever asked has been told.
    pub(super) fn perform(&mut self, run: &mut Run<'_>) -> Result<(), BuildError> {
        self.settle_finished(run)?;
        while let Ok(order) = self.incoming.try_recv() {
            let was_paused = run.is_paused();
            let done = match &order.operation {
                Operation::Status => Ok(()),
                Operation::Pause => run.pause(),
                Operation::Counts => {
                    order.answer(&Answer::counts(run.counts()));
                    continue;
                }
                Operation::Memory => {
                    order.answer(&Answer::memory(run.machine.memory_mappings()));
                    continue;
                }
                Operation::Resume => run.resume().map(drop),
                Operation::Snapshot { .. } => {
                    self.snapshot(order, run)?;
                    continue;
                }
            };
            if run.is_paused() != was_paused {
                run.report();
            }
            match done {
                Ok(()) => order.answer(&done_in(run, None)),
                Err(error) => {
                    order.answer(&Answer::error(FailureKind::Failed, error.to_string()));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn settle_finished(&mut self, run: &mut Run<'_>) -> Result<(), BuildError> {
        let Some(finishing) = self.finishing.take() else {
            return Ok(());
        };
        match finishing.outcome.try_recv() {
            Err(TryRecvError::Empty) => {
                self.finishing = Some(finishing);
                Ok(())
            }
            Ok(outcome) => finishing.settle(Some(outcome), run),
            Err(TryRecvError::Disconnected) => finishing.settle(None, run),
        }
    }

    /// Waits for what is still being written, at the end of the machine.
    pub(super) fn settle(mut self, run: &mut Run<'_>) {
        if let Some(finishing) = self.finishing.take() {
            let outcome = finishing.outcome.recv().ok();
            // The machine has ended: that it cannot go on is no news.
            let _ = finishing.settle(outcome, run);
        }
    }

    fn snapshot(&mut self, order: Incoming, run: &mut Run<'_>) -> Result<(), BuildError> {
        let Operation::Snapshot {
            directory,
            incremental,
            track,
            hold,
        } = &order.operation
        else {
            return Ok(());
        };
        if self.finishing.is_some() {
            let message = "another snapshot of this guest is being written: try again after it";
            order.answer(&Answer::error(FailureKind::Failed, message));
            return Ok(());
        }
        let was_paused = run.is_paused();
        let begun = run
            .pause()
            .map(|()| run.machine.begin_snapshot(directory, *incremental, *track));
        let holds = *hold && matches!(begun, Ok(Ok(_)));
        let resumed = if begun.is_err() || was_paused || holds {
            Ok(Duration::ZERO)
        } else {
            run.resume()
        };
        if run.is_paused() != was_paused {
            run.report();
        }
        match (begun, resumed) {
            (Ok(Ok(unfinished)), Ok(paused)) => {
                let resume = holds && !was_paused;
                self.finish(order, run, unfinished, paused, resume)?;
            }
            (Ok(Err(error)), Ok(_)) => order.answer(&refusal(&error)),
            (Err(error), _) | (_, Err(error)) => {
                order.answer(&Answer::error(FailureKind::Failed, error.to_string()));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Brings a snapshot to disk in a thread of its own.
    fn finish(
        &mut self,
        order: Incoming,
        run: &mut Run<'_>,
        unfinished: Unfinished,
        paused: Duration,
        resume_on_failure: bool,
    ) -> Result<(), BuildError> {
        let finished = Arc::clone(&self.finished);
        // Without descriptors for that, it is finished in any case.
        let waiting = order.waiting().ok();
        let (sender, outcome) = channel();
        let thread = Builder::new().name("snapshot".to_owned()).spawn(move || {
            // Dropped last, so that whoever is woken finds the outcome, or
            // that there is none.
            let _wake = WakeOnDrop(finished);
            let sender = sender;
            // Nobody waits for it when the process is ending.
            let is_wanted = || waiting.is_none_or(|client| client.goes_on());
            let _ = sender.send(unfinished.finish(is_wanted));
        });
        match thread {
            Ok(_) => {
                self.finishing = Some(Finishing {
                    outcome,
                    order,
                    paused,
                    resume_on_failure,
                });
            }
            Err(error) => {
                let message = format!("cannot start a thread for the snapshot: {error}");
                order.answer(&Answer::error(FailureKind::Failed, message));
                return if resume_on_failure {
                    run.resume().map(|_| run.report())
                } else {
                    Ok(())
                };
            }
        }
        Ok(())
    }
}

impl Finishing {
    /// Answers; `outcome` is missing of a thread that panicked.
    fn settle(
        self,
        outcome: Option<Result<Taken, SnapshotError>>,
        run: &mut Run<'_>,
    ) -> Result<(), BuildError> {
        let mut is_taken = false;
        let answer = match outcome {
            Some(Ok(taken)) => {
                is_taken = true;
                run.machine.snapshot_taken(&taken);
                done_in(
                    run,
                    Some(SnapshotWritten {
                        id: taken.snapshot.id.to_string(),
                        memory_bytes: taken.memory_bytes,
                        state_bytes: taken.state_bytes,
                        paused_ns: u64::try_from(self.paused.as_nanos()).unwrap_or(u64::MAX),
                    }),
                )
            }
            Some(Err(error)) => refusal(&TakeError::Snapshot(error)),
            None => Answer::error(FailureKind::Failed, "the snapshot's thread panicked"),
        };
        let resumed = if self.resume_on_failure && !is_taken {
            run.resume().map(|_| run.report())
        } else {
            Ok(())
        };
        self.order.answer(&answer);
        resumed
    }
}

fn done_in(run: &Run<'_>, snapshot: Option<SnapshotWritten>) -> Answer {
    let state = if run.is_paused() {
        MachineState::Paused
    } else {
        MachineState::Running
    };
    Answer::done(Done { state, snapshot })
}

fn refusal(error: &TakeError) -> Answer {
    let kind = match error {
        TakeError::NoParent | TakeError::OtherParent(_) => FailureKind::NoParent,
        TakeError::Relative(_) => FailureKind::BadRequest,
        TakeError::Snapshot(SnapshotError::NoRoom { .. }) => FailureKind::NoSpace,
        _ => FailureKind::Failed,
    };
    Answer::error(kind, error.to_string())
}

/// Wakes the event loop however a thread ends.
struct WakeOnDrop(Arc<EventFd>);

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        // Fails only when it is full, and then it wakes as well.
        let _ = self.0.write(1);
    }
}

/// Only wakes: what has happened, whoever runs the event loop sees for itself.
struct Waker(Arc<EventFd>);

impl MutEventSubscriber for Waker {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let _ = self.0.read();
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new_raw(self.0.as_raw_fd(), EventSet::IN)) {
            eprintln!("insula-vmm: cannot watch a descriptor: {error}");
        }
    }
}

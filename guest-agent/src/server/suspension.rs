//! How the agent holds its processes for a snapshot, as a state machine with
//! the time as a parameter.
//!
//! A snapshot is taken between the answer to `Suspend` and `Resume`. From then
//! on there are two machines in this state: the original, whose processes go
//! on as they are, and copies, whose processes must not run before the copy
//! is a machine of its own. Neither time nor a request tells them apart: a
//! copy may find that ten seconds have passed when it takes its first breath.
//! But a copy's call to the host is dead, even while the agent does not know
//! that yet. So the agent lets its processes go on for two reasons only: the
//! host has said `Restored`, or it has answered on the call after the agent
//! decided to go on.

use crate::protocol::{Code, EventKind, Failure, SUSPENSION_MS};
use crate::supervisor::Waiter;

use super::failure;
use super::timers::MS;

/// How long processes may take to be held. One in uninterruptible sleep is
/// held when it comes out of it.
const FREEZING: u64 = 5_000 * MS;
/// How long writing disks out may take.
const WRITING: u64 = 20_000 * MS;

/// Where the agent is between running and held. With times at which it gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// Processes are being held.
    Freezing(u64),
    /// They are, and disks are being written out.
    Writing(u64),
    /// All is still.
    Held(u64),
    /// All is still until the host shows that this is the original.
    Proving,
}

/// What is to be done now.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Hold all processes; [`Suspension::frozen`] when they are.
    Freeze,
    /// Write disks out; [`Suspension::written`] when it's done.
    WriteOut,
    /// Ask the host for a sign of life; [`Suspension::alive`] when it comes.
    Prove,
    /// Let all processes go on.
    Thaw,
    /// Answer who asked.
    Answer(Waiter, Result<(), Failure>),
    /// Tell those who follow events.
    Tell(EventKind),
}

/// Whether processes are held, and for whom.
#[derive(Debug)]
pub(super) struct Suspension {
    phase: Phase,
    /// Who asked for it and was not answered.
    askers: Vec<Waiter>,
    /// Who asked for its end.
    resumers: Vec<Waiter>,
    /// Those who follow events know of it.
    told: bool,
}

impl Default for Suspension {
    fn default() -> Self {
        Self {
            phase: Phase::Running,
            askers: Vec::new(),
            resumers: Vec::new(),
            told: false,
        }
    }
}

impl Suspension {
    /// Whether nothing is held or about to be.
    pub(super) fn is_over(&self) -> bool {
        self.phase == Phase::Running
    }

    /// Whether somebody has asked for its end.
    pub(super) fn is_to_end(&self) -> bool {
        self.phase == Phase::Proving && !self.resumers.is_empty()
    }

    /// When [`Self::expire`] is to be called.
    pub(super) fn deadline(&self) -> Option<u64> {
        match self.phase {
            Phase::Freezing(at) | Phase::Writing(at) | Phase::Held(at) => Some(at),
            Phase::Running | Phase::Proving => None,
        }
    }

    /// `waiter` asks for a suspension, or for a longer one.
    pub(super) fn suspend(&mut self, now: u64, waiter: Waiter) -> Vec<Step> {
        self.askers.push(waiter);
        match self.phase {
            Phase::Freezing(_) | Phase::Writing(_) => Vec::new(),
            Phase::Running | Phase::Held(_) | Phase::Proving => {
                self.phase = Phase::Freezing(now + FREEZING);
                let mut steps = answers(
                    &mut self.resumers,
                    &Err(state("somebody else has asked to suspend the guest again")),
                );
                steps.push(Step::Freeze);
                steps
            }
        }
    }

    /// All processes are held.
    pub(super) fn frozen(&mut self, now: u64) -> Vec<Step> {
        match self.phase {
            Phase::Freezing(_) => {
                self.phase = Phase::Writing(now + WRITING);
                vec![Step::WriteOut]
            }
            _ => Vec::new(),
        }
    }

    /// Disks are written out, or why not.
    pub(super) fn written(&mut self, now: u64, outcome: Result<(), Failure>) -> Vec<Step> {
        if !matches!(self.phase, Phase::Writing(_)) {
            return Vec::new();
        }
        if let Err(failure) = outcome {
            return self.give_up(failure);
        }
        self.phase = Phase::Held(now + SUSPENSION_MS * MS);
        let mut steps = answers(&mut self.askers, &Ok(()));
        if !std::mem::replace(&mut self.told, true) {
            steps.push(Step::Tell(EventKind::Suspended));
        }
        steps
    }

    /// It could not be brought about.
    pub(super) fn give_up(&mut self, failure: Failure) -> Vec<Step> {
        if self.phase == Phase::Running {
            return Vec::new();
        }
        let mut steps = answers(&mut self.askers, &Err(failure));
        if self.phase != Phase::Proving {
            self.phase = Phase::Proving;
            steps.push(Step::Prove);
        }
        steps
    }

    /// The time of [`Self::deadline`] has come, perhaps.
    pub(super) fn expire(&mut self, now: u64) -> Vec<Step> {
        if self.deadline().is_none_or(|at| now < at) {
            return Vec::new();
        }
        match self.phase {
            Phase::Freezing(_) => self.give_up(state(
                "processes are stuck in the kernel and cannot be held for a snapshot; see \
                 /proc/PID/stack of those in state D",
            )),
            Phase::Writing(_) => self.give_up(state(
                "the data disk takes too long to be written out; wait until the guest writes \
                 less, or see what is wrong with the disk",
            )),
            _ => {
                self.phase = Phase::Proving;
                vec![Step::Prove]
            }
        }
    }

    /// `waiter` asks for its end; `None`: the agent itself, which is to end.
    pub(super) fn resume(&mut self, waiter: Option<Waiter>) -> Vec<Step> {
        if self.phase == Phase::Running {
            return waiter
                .map(|waiter| Step::Answer(waiter, Ok(())))
                .into_iter()
                .collect();
        }
        self.resumers.extend(waiter);
        let asked = state("somebody else has asked to resume the guest");
        let mut steps = answers(&mut self.askers, &Err(asked));
        self.phase = Phase::Proving;
        steps.push(Step::Prove);
        steps
    }

    /// A call to the host is up, on which it can show a sign of life.
    pub(super) fn line_is_up(&self) -> Vec<Step> {
        match self.phase {
            Phase::Proving => vec![Step::Prove],
            _ => Vec::new(),
        }
    }

    /// The host has shown the sign of life that was asked for last: this is
    /// the original.
    pub(super) fn alive(&mut self) -> Vec<Step> {
        if self.phase != Phase::Proving {
            return Vec::new();
        }
        let told = self.told;
        let mut steps = self.end();
        if told {
            steps.push(Step::Tell(EventKind::Resumed));
        }
        steps
    }

    /// This is a copy, and a machine of its own now.
    pub(super) fn restored(&mut self) -> Vec<Step> {
        if self.phase == Phase::Running {
            return Vec::new();
        }
        self.end()
    }

    fn end(&mut self) -> Vec<Step> {
        self.phase = Phase::Running;
        self.told = false;
        let mut steps = vec![Step::Thaw];
        steps.append(&mut answers(&mut self.resumers, &Ok(())));
        let lost = Err(state("the guest was restored from a snapshot meanwhile"));
        steps.append(&mut answers(&mut self.askers, &lost));
        steps
    }
}

fn state(why: &str) -> Failure {
    failure(Code::State, why)
}

fn answers(waiters: &mut Vec<Waiter>, answer: &Result<(), Failure>) -> Vec<Step> {
    waiters
        .drain(..)
        .map(|waiter| Step::Answer(waiter, answer.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000 * MS;

    fn waiter(connection: u32) -> Waiter {
        Waiter {
            connection,
            request: 1,
        }
    }

    fn refused(step: &Step) -> u32 {
        match step {
            Step::Answer(waiter, Err(_)) => waiter.connection,
            other => panic!("{other:?}"),
        }
    }

    /// Held for connection 1, at time 0.
    fn held() -> Suspension {
        let mut it = Suspension::default();
        assert_eq!(it.suspend(0, waiter(1)), [Step::Freeze]);
        assert!(!it.is_over());
        assert_eq!(it.frozen(0), [Step::WriteOut]);
        assert_eq!(
            it.written(0, Ok(())),
            [
                Step::Answer(waiter(1), Ok(())),
                Step::Tell(EventKind::Suspended)
            ]
        );
        it
    }

    #[test]
    fn the_original_goes_on_when_the_host_is_alive() {
        let mut it = held();
        assert_eq!(it.resume(Some(waiter(2))), [Step::Prove]);
        assert!(it.is_to_end());
        assert_eq!(
            it.alive(),
            [
                Step::Thaw,
                Step::Answer(waiter(2), Ok(())),
                Step::Tell(EventKind::Resumed)
            ]
        );
        assert!(it.is_over());
        assert_eq!(it.deadline(), None);
        assert_eq!(it.alive(), []);
        assert_eq!(
            it.resume(Some(waiter(3))),
            [Step::Answer(waiter(3), Ok(()))]
        );
    }

    #[test]
    fn a_suspension_that_nobody_ends_ends_when_the_host_is_alive() {
        let mut it = held();
        assert_eq!(it.deadline(), Some(10 * SECOND));
        assert_eq!(it.expire(10 * SECOND - 1), []);
        assert_eq!(it.expire(10 * SECOND), [Step::Prove]);
        assert!(!it.is_to_end());
        assert_eq!(it.deadline(), None);
        // The call was lost meanwhile: asked again on the next.
        assert_eq!(it.line_is_up(), [Step::Prove]);
        assert_eq!(it.alive(), [Step::Thaw, Step::Tell(EventKind::Resumed)]);
    }

    #[test]
    fn a_copy_goes_on_when_it_was_restored_and_not_before() {
        let mut it = held();
        // Its first breath comes late, and somebody is impatient.
        assert_eq!(it.expire(3600 * SECOND), [Step::Prove]);
        assert_eq!(it.resume(Some(waiter(2))), [Step::Prove]);
        assert_eq!(it.expire(7200 * SECOND), []);
        assert_eq!(it.restored(), [Step::Thaw, Step::Answer(waiter(2), Ok(()))]);
        // The answer that the original would have had.
        assert_eq!(it.alive(), []);
        assert!(it.is_over());
        // And the next snapshot is told of again.
        it = held();
        assert_eq!(it.restored(), [Step::Thaw]);
        assert_eq!(it.restored(), []);
    }

    #[test]
    fn a_sign_of_life_counts_only_when_it_was_asked_for() {
        let mut it = held();
        assert_eq!(it.alive(), []);
        assert_eq!(it.line_is_up(), []);
        assert!(!it.is_over());
    }

    #[test]
    fn a_second_request_renews_it() {
        let mut it = held();
        assert_eq!(it.suspend(8 * SECOND, waiter(2)), [Step::Freeze]);
        assert_eq!(it.suspend(8 * SECOND, waiter(3)), []);
        it.frozen(9 * SECOND);
        assert_eq!(
            it.written(9 * SECOND, Ok(())),
            [
                Step::Answer(waiter(2), Ok(())),
                Step::Answer(waiter(3), Ok(()))
            ]
        );
        assert_eq!(it.deadline(), Some(19 * SECOND));
        it.expire(19 * SECOND);
        it.resume(Some(waiter(4)));
        let steps = it.suspend(20 * SECOND, waiter(5));
        assert_eq!(refused(&steps[0]), 4);
        assert_eq!(steps[1], Step::Freeze);
    }

    #[test]
    fn what_cannot_be_held_goes_on() {
        let mut it = Suspension::default();
        it.suspend(0, waiter(1));
        let steps = it.expire(FREEZING);
        assert_eq!(refused(&steps[0]), 1);
        assert_eq!(steps[1], Step::Prove);
        // Nobody was told that it was held.
        assert_eq!(it.alive(), [Step::Thaw]);

        it.suspend(0, waiter(1));
        it.frozen(0);
        let steps = it.written(0, Err(state("no space")));
        assert_eq!(refused(&steps[0]), 1);
        assert_eq!(steps[1], Step::Prove);
        assert_eq!(it.alive(), [Step::Thaw]);

        it.suspend(0, waiter(1));
        it.frozen(0);
        assert_eq!(refused(&it.expire(WRITING)[0]), 1);
        // What comes too late changes nothing.
        assert_eq!(it.written(WRITING, Ok(())), []);
        assert_eq!(it.frozen(WRITING), []);
    }

    #[test]
    fn a_resume_ends_what_has_only_begun() {
        let mut it = Suspension::default();
        it.suspend(0, waiter(1));
        let steps = it.resume(Some(waiter(2)));
        assert_eq!(refused(&steps[0]), 1);
        assert_eq!(steps[1], Step::Prove);
        assert_eq!(it.frozen(0), []);
        assert_eq!(it.alive(), [Step::Thaw, Step::Answer(waiter(2), Ok(()))]);
    }
}

//! A VPS's life as a state machine, with the time as a parameter.

use std::collections::VecDeque;

use crate::protocol::{Exit, RestartPolicy, VpsState};

const SECOND: u64 = 1_000_000_000;
/// So many reboots are served …
const REBOOTS: usize = 5;
/// … within this many nanoseconds.
const REBOOT_WINDOW: u64 = 60 * SECOND;
/// Between two askings of an init to stop.
const ASK_EVERY: u64 = SECOND;
/// Between two looks what the init does.
const LOOK_EVERY: u64 = SECOND / 50;

/// Where a VPS is in its life. Times are nanoseconds since the kernel booted.
#[derive(Debug)]
pub(crate) struct Life {
    state: VpsState,
    boot_count: u32,
    last_exit: Option<Exit>,
    failure: Option<String>,
    started_at: u64,
    reboots: VecDeque<u64>,
    stop: Option<Stop>,
}

#[derive(Debug, Clone, Copy)]
struct Stop {
    deadline: u64,
    next: u64,
    /// When its init was asked last.
    asked: Option<u64>,
    killed: bool,
    /// Killed when it had powered off in all but name.
    finished: bool,
    restart: bool,
}

/// What an init does about being asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hearing {
    /// It handles the signal that asks.
    Listens,
    /// It does not: not yet, never, or no more.
    Deaf,
    /// It does not, is the last process of its VPS, and lets time pass.
    AloneAsleep,
}

/// What to do with a VPS whose init has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum After {
    /// It rebooted: start it again.
    Reboot,
    /// It was stopped for a restart: start it again.
    Restart,
    /// It stays down.
    Down,
    /// It stays down, because of this.
    Fail(String),
}

/// What to do now for a VPS that is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopStep {
    /// Ask its init.
    Ask,
    /// Kill all of it.
    Kill,
    /// Wait.
    Wait,
}

impl Life {
    /// A VPS that is down and was started `boot_count` times.
    pub(crate) fn new(boot_count: u32, last_exit: Option<Exit>) -> Self {
        Self {
            state: VpsState::Stopped,
            boot_count,
            last_exit,
            failure: None,
            started_at: 0,
            reboots: VecDeque::new(),
            stop: None,
        }
    }

    pub(crate) fn state(&self) -> VpsState {
        self.state
    }

    pub(crate) fn boot_count(&self) -> u32 {
        self.boot_count
    }

    pub(crate) fn last_exit(&self) -> Option<Exit> {
        self.last_exit
    }

    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Milliseconds since its init was started, while it runs.
    pub(crate) fn uptime_ms(&self, now: u64) -> Option<u64> {
        self.is_up()
            .then(|| now.saturating_sub(self.started_at) / 1_000_000)
    }

    /// Whether its init runs.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state, VpsState::Running | VpsState::Stopping)
    }

    /// Its init was executed.
    pub(crate) fn started(&mut self, now: u64) {
        self.state = VpsState::Running;
        self.boot_count = self.boot_count.saturating_add(1);
        self.started_at = now;
        self.failure = None;
        self.stop = None;
    }

    /// It could not be started, or not be cleared away.
    pub(crate) fn failed(&mut self, why: String) {
        self.state = VpsState::Failed;
        self.failure = Some(why);
        self.stop = None;
    }

    /// Somebody starts it by hand: old reboots don't count.
    pub(crate) fn forgive(&mut self) {
        self.reboots.clear();
    }

    /// It is to stop within `timeout_ms`, and to start again if `restart`.
    /// A later, shorter timeout replaces an earlier one.
    pub(crate) fn stop(&mut self, now: u64, timeout_ms: u32, restart: bool) {
        if !self.is_up() {
            return;
        }
        let deadline = now + u64::from(timeout_ms) * 1_000_000;
        let before = self.stop;
        self.state = VpsState::Stopping;
        self.stop = Some(Stop {
            deadline: before.map_or(deadline, |stop| stop.deadline.min(deadline)),
            next: now,
            asked: before.and_then(|stop| stop.asked),
            killed: before.is_some_and(|stop| stop.killed),
            finished: false,
            restart,
        });
    }

    /// What to do now, while it is to stop. `hearing`: what its init does;
    /// `grown_up`: the age at which one that is deaf will always be.
    ///
    /// An init that has taken the signal is left alone from then on: it may
    /// well shed its handlers while it ends its services. When nothing is left
    /// but itself in a pause (busybox's pauses for two seconds before it
    /// powers off) all is done, and waiting would be for nobody's good.
    pub(crate) fn stop_step(&mut self, now: u64, hearing: Hearing, grown_up: u64) -> StopStep {
        let age = now.saturating_sub(self.started_at);
        let Some(stop) = &mut self.stop else {
            return StopStep::Wait;
        };
        if stop.killed {
            return StopStep::Wait;
        }
        let deaf = hearing != Hearing::Listens && stop.asked.is_none() && age >= grown_up;
        stop.finished = hearing == Hearing::AloneAsleep && stop.asked.is_some();
        if now >= stop.deadline || deaf || stop.finished {
            stop.killed = true;
            return StopStep::Kill;
        }
        if now < stop.next {
            return StopStep::Wait;
        }
        stop.next = now + LOOK_EVERY;
        let due = stop.asked.is_none_or(|asked| now >= asked + ASK_EVERY);
        if hearing == Hearing::Listens && due {
            stop.asked = Some(now);
            StopStep::Ask
        } else {
            StopStep::Wait
        }
    }

    /// When [`Life::stop_step`] has something to do next.
    pub(crate) fn next_step(&self) -> Option<u64> {
        let stop = self.stop.filter(|stop| !stop.killed)?;
        Some(stop.next.min(stop.deadline))
    }

    /// Its init has ended so at `now`.
    pub(crate) fn ended(&mut self, now: u64, exit: Exit, policy: RestartPolicy) -> After {
        let finished = self.stop.is_some_and(|stop| stop.finished);
        self.last_exit = Some(if finished { Exit::Halt } else { exit });
        self.state = VpsState::Stopped;
        if let Some(stop) = self.stop.take() {
            return if stop.restart {
                After::Restart
            } else {
                After::Down
            };
        }
        if exit != Exit::Reboot || policy == RestartPolicy::Never {
            return After::Down;
        }
        while self
            .reboots
            .front()
            .is_some_and(|at| at + REBOOT_WINDOW <= now)
        {
            self.reboots.pop_front();
        }
        if self.reboots.len() >= REBOOTS {
            return After::Fail(format!(
                "it rebooted more than {REBOOTS} times in {} s; look at its console, then start \
                 it by hand",
                REBOOT_WINDOW / SECOND
            ));
        }
        self.reboots.push_back(now);
        self.state = VpsState::Starting;
        After::Reboot
    }
}

#[cfg(test)]
mod tests {
    use super::Hearing::{AloneAsleep, Deaf, Listens};
    use super::*;

    const ALLOW: RestartPolicy = RestartPolicy::AllowReboot;

    fn running(at: u64) -> Life {
        let mut life = Life::new(0, None);
        life.started(at);
        life
    }

    #[test]
    fn a_reboot_comes_back_and_a_halt_stays_down() {
        let mut life = running(SECOND);
        assert_eq!(life.ended(2 * SECOND, Exit::Reboot, ALLOW), After::Reboot);
        assert_eq!(life.state(), VpsState::Starting);
        life.started(3 * SECOND);
        assert_eq!(
            (life.boot_count(), life.uptime_ms(4 * SECOND)),
            (2, Some(1000))
        );
        assert_eq!(life.ended(5 * SECOND, Exit::Halt, ALLOW), After::Down);
        assert_eq!(
            (life.state(), life.last_exit()),
            (VpsState::Stopped, Some(Exit::Halt))
        );
        assert_eq!(life.uptime_ms(6 * SECOND), None);
    }

    #[test]
    fn exits_and_signals_stay_down_and_policy_can_forbid_reboots() {
        for exit in [Exit::Code(0), Exit::Code(3), Exit::Signal(9)] {
            assert_eq!(running(0).ended(1, exit, ALLOW), After::Down);
        }
        assert_eq!(
            running(0).ended(1, Exit::Reboot, RestartPolicy::Never),
            After::Down
        );
    }

    #[test]
    fn the_sixth_reboot_in_a_minute_fails_and_a_slow_one_does_not() {
        let mut life = running(0);
        for n in 0..5 {
            assert_eq!(life.ended(n * SECOND, Exit::Reboot, ALLOW), After::Reboot);
            life.started(n * SECOND);
        }
        assert!(matches!(
            life.ended(59 * SECOND, Exit::Reboot, ALLOW),
            After::Fail(_)
        ));
        life.started(59 * SECOND);
        assert_eq!(life.ended(60 * SECOND, Exit::Reboot, ALLOW), After::Reboot);

        let mut life = running(0);
        for n in 0..100 {
            assert_eq!(
                life.ended(n * 13 * SECOND, Exit::Reboot, ALLOW),
                After::Reboot
            );
            life.started(n * 13 * SECOND);
        }
    }

    #[test]
    fn starting_by_hand_forgives_reboots() {
        let mut life = running(0);
        for n in 0..5 {
            life.ended(n, Exit::Reboot, ALLOW);
            life.started(n);
        }
        life.forgive();
        assert_eq!(life.ended(9, Exit::Reboot, ALLOW), After::Reboot);
    }

    #[test]
    fn stopping_asks_every_second_and_kills_at_the_deadline_once() {
        let mut life = running(0);
        let begin = 10 * SECOND;
        life.stop(begin, 2500, false);
        assert_eq!(life.state(), VpsState::Stopping);
        assert_eq!(life.stop_step(begin, Listens, 5 * SECOND), StopStep::Ask);
        assert_eq!(life.next_step(), Some(begin + LOOK_EVERY));
        assert_eq!(
            life.stop_step(begin + SECOND / 2, Listens, 5 * SECOND),
            StopStep::Wait
        );
        assert_eq!(
            life.stop_step(begin + SECOND, Listens, 5 * SECOND),
            StopStep::Ask
        );
        assert_eq!(
            life.stop_step(begin + 2 * SECOND, Listens, 5 * SECOND),
            StopStep::Ask
        );
        assert_eq!(life.next_step(), Some(begin + 2 * SECOND + LOOK_EVERY));
        assert_eq!(
            life.stop_step(begin + SECOND * 5 / 2, Listens, 5 * SECOND),
            StopStep::Kill
        );
        assert_eq!(
            life.stop_step(begin + 9 * SECOND, Listens, 5 * SECOND),
            StopStep::Wait
        );
        assert_eq!(life.next_step(), None);
        assert_eq!(
            life.ended(begin + 9 * SECOND, Exit::Signal(9), ALLOW),
            After::Down
        );
    }

    #[test]
    fn an_init_that_is_deaf_is_killed_and_a_young_one_is_waited_for() {
        let mut life = running(0);
        life.stop(6 * SECOND, 30_000, false);
        assert_eq!(life.stop_step(6 * SECOND, Deaf, 5 * SECOND), StopStep::Kill);

        let mut life = running(0);
        life.stop(SECOND, 30_000, false);
        assert_eq!(life.stop_step(SECOND, Deaf, 5 * SECOND), StopStep::Wait);
        assert_eq!(life.next_step(), Some(SECOND + LOOK_EVERY));
        assert_eq!(
            life.stop_step(SECOND + LOOK_EVERY, Listens, 5 * SECOND),
            StopStep::Ask
        );
    }

    #[test]
    fn an_init_that_went_deaf_when_asked_is_waited_for_until_it_is_done() {
        let begin = 60 * SECOND;
        let mut life = running(0);
        life.stop(begin, 30_000, false);
        // Alone and asleep is how many an init spends its life.
        assert_eq!(life.stop_step(begin, Listens, SECOND), StopStep::Ask);
        for second in 1..20 {
            let now = begin + second * SECOND;
            assert_eq!(life.stop_step(now, Deaf, SECOND), StopStep::Wait);
        }
        let done = begin + 20 * SECOND;
        assert_eq!(life.stop_step(done, AloneAsleep, SECOND), StopStep::Kill);
        assert_eq!(life.ended(done, Exit::Signal(9), ALLOW), After::Down);
        assert_eq!(life.last_exit(), Some(Exit::Halt));

        // One that was never asked is not done.
        let mut life = running(0);
        life.stop(SECOND / 2, 30_000, false);
        let step = life.stop_step(SECOND / 2, AloneAsleep, SECOND);
        assert_eq!(step, StopStep::Wait);
    }

    #[test]
    fn a_stop_in_hand_beats_a_reboot_and_a_restart_comes_back() {
        let mut life = running(0);
        life.stop(1, 1000, false);
        assert_eq!(life.ended(2, Exit::Reboot, ALLOW), After::Down);
        life.started(3);
        life.stop(4, 0, true);
        assert_eq!(life.stop_step(4, Listens, 5 * SECOND), StopStep::Kill);
        assert_eq!(life.ended(5, Exit::Signal(9), ALLOW), After::Restart);
    }

    #[test]
    fn a_second_stop_can_only_hasten_the_first() {
        let mut life = running(0);
        life.stop(0, 10_000, false);
        life.stop(SECOND, 60_000, false);
        assert_eq!(
            life.stop_step(10 * SECOND, Listens, 5 * SECOND),
            StopStep::Kill
        );
        let mut life = running(0);
        life.stop(0, 10_000, true);
        life.stop(SECOND, 0, false);
        assert_eq!(life.stop_step(SECOND, Listens, 5 * SECOND), StopStep::Kill);
        assert_eq!(life.ended(SECOND, Exit::Signal(9), ALLOW), After::Down);
    }
}

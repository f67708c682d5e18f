//! How VPSs get down, and what is left of them away.

use super::life::{After, Hearing, StopStep};
use super::listening::{handled_signals, only_sleeps};
use super::{Effect, Supervisor, Waiter, engine_failure, unknown};
use crate::protocol::{Code, EventKind, Exit, Failure, Init, Name};
use crate::server::failure;
use crate::server::timers::{MS, now};
use crate::sys;
use crate::vps;

/// Between two attempts to clear away what is left of a VPS.
const CLEAR_EVERY: u64 = 20 * MS;
/// So often that is tried: processes in uninterruptible sleep end some time,
/// or never.
const CLEAR_ATTEMPTS: u32 = 500;

/// An init command that handles no stop signal at this age never will …
const COMMAND_GROWN_UP: u64 = 1_000 * MS;
/// … and a template's init, which has more to do first, at this.
const TEMPLATE_GROWN_UP: u64 = 10_000 * MS;

impl Supervisor {
    /// Stops a VPS for `waiter`, who is answered when it is down, or up again.
    pub(crate) fn stop(
        &mut self,
        name: &Name,
        timeout_ms: u32,
        restart: bool,
        waiter: Waiter,
    ) -> Result<(), Failure> {
        let record = self.record(name)?;
        if !record.life.is_up() && record.clearing.is_none() {
            if restart {
                let started = self.start(name);
                self.effects
                    .push(Effect::Settled(waiter, started.map(Box::new)));
                return Ok(());
            }
            let info = self.info(name);
            self.effects
                .push(Effect::Settled(waiter, info.map(Box::new)));
            return Ok(());
        }
        record.stop_waiters.push(waiter);
        match &mut record.clearing {
            Some((after, _)) if !restart => *after = After::Down,
            Some((after, _)) => *after = After::Restart,
            None => record.life.stop(now(), timeout_ms, restart),
        }
        self.attend(name);
        Ok(())
    }

    /// Stops all VPSs.
    pub(crate) fn stop_all(&mut self, timeout_ms: u32) {
        let names: Vec<Name> = self.records.keys().cloned().collect();
        for name in names {
            if let Some(record) = self.records.get_mut(&name) {
                if let Some((after, _)) = &mut record.clearing {
                    *after = After::Down;
                }
                record.life.stop(now(), timeout_ms, false);
            }
            self.attend(&name);
        }
    }

    /// Destroys a VPS for `waiter`, who is answered when it is done.
    pub(crate) fn destroy(
        &mut self,
        name: &Name,
        force: bool,
        waiter: Waiter,
    ) -> Result<(), Failure> {
        let record = self.record(name)?;
        if record.life.is_up() || record.clearing.is_some() {
            if !force {
                let state = record.life.state();
                return Err(failure(
                    Code::State,
                    format!("VPS {name} is {state}; stop it first, or destroy it with force"),
                ));
            }
            record.destroy_waiters.push(waiter);
            if let Some((after, _)) = &mut record.clearing {
                *after = After::Down;
            }
            record.life.stop(now(), 0, false);
            self.attend(name);
            return Ok(());
        }
        let outcome = self.remove(name);
        self.effects.push(Effect::Destroyed(waiter, outcome));
        Ok(())
    }

    /// The run that a VPS lives for is over.
    pub(crate) fn abandon(&mut self, name: &Name) {
        let Some(record) = self.records.get_mut(name) else {
            return;
        };
        if record.life.is_up() {
            record.life.stop(now(), 0, false);
            self.attend(name);
        } else if record.clearing.is_none()
            && let Err(e) = self.remove(name)
        {
            crate::server::log(&format!("cannot destroy VPS {name}: {e}"));
        }
    }

    fn remove(&mut self, name: &Name) -> Result<(), Failure> {
        let Some(record) = self.records.remove(name) else {
            return Err(unknown(name));
        };
        if let (Some(store), None) = (&self.store, record.run_by)
            && let Err(e) = store.remove(name)
        {
            let message = format!("cannot remove the definition of VPS {name}: {e}");
            self.records.insert(name.clone(), record);
            return Err(Failure {
                code: Code::Internal,
                message,
                errno: e.raw_os_error(),
            });
        }
        self.engine
            .destroy(&record.vps)
            .map_err(|e| engine_failure(&e))?;
        self.effects
            .push(Effect::Event(name.clone(), EventKind::Destroyed));
        Ok(())
    }

    /// The init of a VPS was reaped.
    pub(crate) fn ended(&mut self, name: &Name, exit: Exit) {
        let Some(record) = self.records.get_mut(name) else {
            return;
        };
        record.running = None;
        self.unwatch_memory(name);
        let Some(record) = self.records.get_mut(name) else {
            return;
        };
        let mut after = record.life.ended(now(), exit, record.vps.spec.restart);
        if record.run_by.is_some() {
            after = After::Down;
        }
        record.clearing = Some((after, 0));
        self.remember(name);
        self.clear(name);
    }

    /// Does what is due for a VPS.
    pub(crate) fn attend(&mut self, name: &Name) {
        let Some(record) = self.records.get_mut(name) else {
            return;
        };
        if record.clearing.is_some() {
            self.clear(name);
            return;
        }
        let Some(running) = &record.running else {
            return;
        };
        let pid = running.init.pid;
        let handled = handled_signals(pid);
        let ask = vps::exit::signal_for_stop(&record.vps.spec.init, handled);
        let of_template = matches!(record.vps.spec.init, Init::Template);
        let hearing = if handled & (1 << (ask - 1)) != 0 {
            Hearing::Listens
        } else if of_template && only_sleeps(pid) && self.engine.tasks(&record.vps) == Some(1) {
            Hearing::AloneAsleep
        } else {
            Hearing::Deaf
        };
        let grown_up = if of_template {
            TEMPLATE_GROWN_UP
        } else {
            COMMAND_GROWN_UP
        };
        let step = record.life.stop_step(now(), hearing, grown_up);
        match step {
            // An init that has just ended is about to be reaped.
            StopStep::Ask => drop(sys::kill(pid, ask)),
            StopStep::Kill => {
                if let Err(e) = self.engine.kill(&record.vps) {
                    crate::server::log(&format!("cannot kill VPS {name}: {e}"));
                    let _ = sys::kill(pid, libc::SIGKILL);
                }
            }
            StopStep::Wait => {}
        }
        if let Some(at) = record.life.next_step() {
            self.effects.push(Effect::Attend(at, name.clone()));
        }
    }

    /// Clears away what is left of a VPS, and does what comes after that.
    fn clear(&mut self, name: &Name) {
        let Some(record) = self.records.get_mut(name) else {
            return;
        };
        let Some((after, attempts)) = record.clearing.take() else {
            return;
        };
        let after = match self.engine.teardown(&record.vps) {
            Ok(true) => after,
            Ok(false) if attempts < CLEAR_ATTEMPTS => {
                record.clearing = Some((after, attempts + 1));
                self.effects
                    .push(Effect::Attend(now() + CLEAR_EVERY, name.clone()));
                return;
            }
            Ok(false) => After::Fail(
                "processes of it are stuck in the kernel and do not die; see \
                 /proc/PID/stack of those in its cgroup"
                    .into(),
            ),
            Err(e) => After::Fail(e.to_string()),
        };
        record.console.open = None;
        let exit = record.life.last_exit().unwrap_or(Exit::Code(0));
        if let Some(connection) = record.run_by {
            self.effects.push(Effect::RunEnded(connection, exit));
        }
        match after {
            _ if !record.destroy_waiters.is_empty() || record.run_by.is_some() => {
                let waiters = std::mem::take(&mut record.destroy_waiters);
                let stopped = std::mem::take(&mut record.stop_waiters);
                self.effects
                    .push(Effect::Event(name.clone(), EventKind::Ended(exit)));
                for waiter in stopped {
                    let info = self.info(name);
                    self.effects
                        .push(Effect::Settled(waiter, info.map(Box::new)));
                }
                let outcome = self.remove(name);
                for waiter in waiters {
                    self.effects
                        .push(Effect::Destroyed(waiter, outcome.clone()));
                }
                return;
            }
            After::Down => {
                self.effects
                    .push(Effect::Event(name.clone(), EventKind::Ended(exit)));
            }
            After::Fail(why) => {
                record.life.failed(why.clone());
                self.effects
                    .push(Effect::Event(name.clone(), EventKind::Failed(why)));
            }
            After::Reboot | After::Restart if self.held => {
                // When it is released.
                record.clearing = Some((after, 0));
                return;
            }
            After::Reboot | After::Restart => {
                // A failure is in the VPS's state, and in the waiters' answers.
                let launched = self.launch(name, None);
                if launched.is_ok() {
                    let kind = match after {
                        After::Reboot => EventKind::Rebooted,
                        _ => EventKind::Started,
                    };
                    self.effects.push(Effect::Event(name.clone(), kind));
                }
                self.settle(name, &launched);
                return;
            }
        }
        self.settle(name, &Ok(()));
    }

    fn settle(&mut self, name: &Name, outcome: &Result<(), Failure>) {
        let Ok(record) = self.record(name) else {
            return;
        };
        for waiter in std::mem::take(&mut record.stop_waiters) {
            let answer = outcome.clone().and_then(|()| self.info(name));
            self.effects
                .push(Effect::Settled(waiter, answer.map(Box::new)));
        }
    }
}

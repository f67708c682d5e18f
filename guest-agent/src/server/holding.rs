//! What the agent does to hold its processes for a snapshot, and to become a
//! machine of its own after one.

use std::path::Path;

use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags, open, syncfs};
use rustix::io::Errno;

use super::connection::{Stage, failure};
use super::host_line::News;
use super::poller::Token;
use super::suspension::Step;
use super::timers::{Due, now};
use super::{Agent, Child, log};
use crate::machine::SessionCgroup;
use crate::protocol::{Code, EventKind, Failure, Message, Restored, Resumed};
use crate::supervisor::Waiter;
use crate::sys;
use crate::vps::Freezer;

/// Processes that are held, or about to be.
#[derive(Debug)]
pub(super) struct Held {
    freezer: Freezer,
    /// What its events are registered for.
    registered: EventFlags,
}

fn cannot_hold(errno: Errno) -> Failure {
    Failure {
        code: Code::Internal,
        message: format!("cannot hold processes by their cgroup: {errno}"),
        errno: Some(errno.raw_os_error()),
    }
}

impl Agent {
    /// A client asks to hold everything.
    pub(super) fn suspend(&mut self, waiter: Waiter) -> Result<(), Failure> {
        if self.ending.is_some() {
            return Err(failure(Code::State, "the agent is about to end"));
        }
        if let Some(line) = &mut self.host
            && !line.is_up()
        {
            // A copy learns what it is by the loss of its call.
            if line.is_given_up() {
                line.hope();
                self.timers.set(now(), Due::Dial);
            }
            let text = "the agent has no connection to its host now, without which a snapshot \
                        could not be restored; try again";
            return Err(failure(Code::State, text));
        }
        self.todo.extend(self.suspension.suspend(now(), waiter));
        Ok(())
    }

    /// Refuses what must not happen while everything is held.
    pub(super) fn refuse_while_held(&self) -> Result<(), Failure> {
        if self.suspension.is_over() {
            return Ok(());
        }
        let text = "the guest is suspended for a snapshot; try again when that is over";
        Err(failure(Code::State, text))
    }

    /// Does all that the suspension wants done.
    pub(super) fn carry_out(&mut self) {
        while !self.todo.is_empty() {
            for step in std::mem::take(&mut self.todo) {
                self.take_step(step);
            }
        }
        let deadline = self.suspension.deadline();
        if deadline != self.suspension_due {
            // Nothing wakes the agent, or a copy of it, for what is over.
            if let Some(at) = self.suspension_due {
                self.timers.clear(at, Due::Suspension);
            }
            if let Some(at) = deadline {
                self.timers.set(at, Due::Suspension);
            }
            self.suspension_due = deadline;
        }
    }

    fn take_step(&mut self, step: Step) {
        match step {
            Step::Freeze => {
                if let Err(failure) = self.freeze() {
                    self.todo.extend(self.suspension.give_up(failure));
                }
            }
            Step::WriteOut => self.write_out(),
            Step::Prove => self.prove(),
            Step::Thaw => self.thaw(),
            Step::Answer(waiter, Ok(())) => self.answer(waiter, Message::Done),
            Step::Answer(waiter, Err(failure)) => self.answer(waiter, Message::Error(failure)),
            Step::Tell(kind) => self.tell(kind),
        }
    }

    /// Tells those who follow events what happened to the machine.
    fn tell(&mut self, kind: EventKind) {
        self.events.push(now(), None, kind);
        self.refresh(|stage| matches!(stage, Stage::Events(_)));
    }

    fn freeze(&mut self) -> Result<(), Failure> {
        if let Ok(supervisor) = &mut self.supervisor {
            supervisor.hold();
        }
        if self.held.is_empty() {
            // What has no processes gets none as long as it is held.
            if let Ok(supervisor) = &self.supervisor
                && supervisor.busy() > 0
            {
                let freezer = supervisor.freezer().map_err(cannot_hold)?;
                self.held.push(Held::new(freezer));
            }
            let sessions = self.sessions.as_ref().and_then(SessionCgroup::made);
            if let Some(cgroup) = sessions {
                let freezer = Freezer::new(cgroup).map_err(cannot_hold)?;
                self.held.push(Held::new(freezer));
            }
        }
        for held in &self.held {
            held.freezer.freeze().map_err(cannot_hold)?;
        }
        self.look_at_held();
        Ok(())
    }

    /// Looks whether all processes are held by now.
    pub(super) fn look_at_held(&mut self) {
        let mut all = true;
        for (held, index) in self.held.iter_mut().zip(0..) {
            // One that cannot be asked is waited for until time is up.
            let frozen = held.freezer.is_frozen().unwrap_or(false);
            all &= frozen;
            let wanted = if frozen {
                EventFlags::empty()
            } else {
                EventFlags::PRI
            };
            let token = Token::Held(index);
            let events = held.freezer.events();
            if let Err(e) = self.poller.set(events, token, &mut held.registered, wanted) {
                log(&format!("cannot watch a cgroup: {e}"));
            }
        }
        if all {
            self.todo.extend(self.suspension.frozen(now()));
        }
    }

    /// Writes the disk out, in a process that may take its time.
    fn write_out(&mut self) {
        let Some(disk) = &self.disk else {
            self.todo.extend(self.suspension.written(now(), Ok(())));
            return;
        };
        match sys::fork() {
            Ok(None) => sys::exit_now(write_out(disk)),
            Ok(Some(pid)) => {
                self.write_outs = self.write_outs.wrapping_add(1);
                self.children.insert(pid, Child::WriteOut(self.write_outs));
            }
            Err(e) => self.written(self.write_outs, e.raw_os_error()),
        }
    }

    /// The writer of that number has ended, with an error number or 0.
    pub(super) fn written(&mut self, number: u32, errno: i32) {
        if number != self.write_outs {
            return;
        }
        let outcome = match errno {
            0 => Ok(()),
            errno => Err(Failure {
                code: Code::Exhausted,
                message: format!(
                    "cannot write the data disk out: {}",
                    Errno::from_raw_os_error(errno.clamp(1, 4095))
                ),
                errno: Some(errno),
            }),
        };
        self.todo.extend(self.suspension.written(now(), outcome));
    }

    fn prove(&mut self) {
        let proven = match &mut self.host {
            // Who has no host is nobody's copy.
            None => true,
            Some(line) if line.is_up() => {
                if !line.ping() {
                    self.lose_host();
                }
                false
            }
            // Nobody will ever answer: what a client says has to do.
            Some(line) => line.is_given_up() && self.suspension.is_to_end(),
        };
        if proven {
            self.todo.extend(self.suspension.alive());
        }
    }

    fn thaw(&mut self) {
        for mut held in self.held.drain(..) {
            if let Err(e) = held.freezer.thaw() {
                log(&format!("cannot let held processes go on: {e}"));
            }
            // It goes with its descriptor, else.
            let _ = self.poller.set(
                held.freezer.events(),
                Token::Held(0),
                &mut held.registered,
                EventFlags::empty(),
            );
        }
        if let Ok(supervisor) = &mut self.supervisor {
            supervisor.release();
        }
        self.apply_effects();
    }

    /// The call to the host has something to say.
    pub(super) fn hear_host(&mut self) {
        let Some(line) = &mut self.host else { return };
        let mut news = line.ready(now(), &self.poller);
        loop {
            match news {
                News::Nothing => {}
                News::Up => self.todo.extend(self.suspension.line_is_up()),
                News::Alive => self.todo.extend(self.suspension.alive()),
                News::Restored(id, restored) => self.restored(id, &restored),
                News::Lost => {
                    self.lose_host();
                    break;
                }
            }
            let Some(line) = &mut self.host else { break };
            news = line.hear();
            if news == News::Nothing {
                break;
            }
        }
        self.carry_out();
    }

    /// The call is lost, or could not be made.
    fn lose_host(&mut self) {
        let Some(line) = &mut self.host else { return };
        loop {
            match line.lose(now(), &self.poller) {
                Some(0) => {
                    if line.dial(&self.poller) {
                        return;
                    }
                }
                Some(delay) => {
                    self.timers.set(now() + delay, Due::Dial);
                    return;
                }
                None => {
                    log("the host does not take the agent's call any more");
                    if self.suspension.is_to_end() {
                        self.todo.extend(self.suspension.alive());
                    }
                    return;
                }
            }
        }
    }

    /// It is time to dial again.
    pub(super) fn dial_host(&mut self) {
        if let Some(line) = &mut self.host
            && !line.dial(&self.poller)
        {
            self.lose_host();
        }
        self.carry_out();
    }

    /// The host says that this is a copy, and which.
    fn restored(&mut self, id: u32, restored: &Restored) {
        let Some(line) = &mut self.host else { return };
        let generation = restored.generation;
        if line.generation() != Some(generation) {
            if let Err(why) = line.assume(restored) {
                self.failed = Some(why);
                return;
            }
            if let Ok(supervisor) = &mut self.supervisor {
                for complaint in supervisor.renew_identities() {
                    log(&complaint);
                }
            }
            self.todo.extend(self.suspension.restored());
            self.carry_out();
            self.tell(EventKind::Restored(generation));
        }
        let Some(line) = &mut self.host else { return };
        if !line.say(id, Message::Resumed(Resumed { generation })) {
            self.lose_host();
        }
    }
}

impl Held {
    fn new(freezer: Freezer) -> Self {
        Self {
            freezer,
            registered: EventFlags::empty(),
        }
    }
}

/// In the writer: writes out the file system that `disk` is in; returns an
/// error number, or 0.
fn write_out(disk: &Path) -> i32 {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let written = open(disk, flags, Mode::empty()).and_then(syncfs);
    written.map_or_else(Errno::raw_os_error, |()| 0)
}

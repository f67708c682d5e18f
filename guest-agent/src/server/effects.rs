//! What the supervisor leaves to others: answers, timers, events, consoles.

use super::connection::Stage;
use super::timers::{Due, now};
use super::{Agent, Child};
use crate::protocol::Message;
use crate::supervisor::Effect;

impl Agent {
    /// Carries out what the supervisor has left to others.
    pub(super) fn apply_effects(&mut self) {
        loop {
            let Ok(supervisor) = &mut self.supervisor else {
                return;
            };
            let effects = supervisor.take_effects();
            if effects.is_empty() {
                return;
            }
            let mut happened = false;
            for effect in effects {
                happened |= matches!(effect, Effect::Event(..));
                self.apply(effect);
            }
            if happened {
                // Consoles too: theirs may have gone.
                self.refresh(|stage| matches!(stage, Stage::Events(_) | Stage::Console(..)));
            }
        }
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Init(pid, name) => {
                self.children.insert(pid, Child::Init(name));
            }
            Effect::Settled(waiter, answer) => {
                let answer = answer.map_or_else(Message::Error, |info| Message::Vps(*info));
                self.answer(waiter, answer);
            }
            Effect::Destroyed(waiter, answer) => {
                let answer = answer.map_or_else(Message::Error, |()| Message::Done);
                self.answer(waiter, answer);
            }
            Effect::RunEnded(id, exit) => self.session_ended(id, exit),
            Effect::Event(name, kind) => self.events.push(now(), Some(name), kind),
            Effect::Attend(at, name) => self.timers.set(at, Due::Vps(name)),
            Effect::Console(name) => self.watch_console(&name),
        }
    }

    /// Settles all connections in a stage that `which` picks.
    pub(super) fn refresh(&mut self, which: impl Fn(&Stage) -> bool) {
        let ids: Vec<u32> = self
            .connections
            .iter()
            .filter(|(_, connection)| which(&connection.stage))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            if let Some(connection) = self.connections.remove(&id) {
                self.settle(connection);
            }
        }
    }
}

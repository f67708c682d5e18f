//! What wakes the main loop: the machine's end, a signal, news of the agent.

use std::os::fd::AsRawFd;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::agent_link::AgentLink;
use super::ending::{Cause, EndSignal, Ending};
use super::signals::EndingSignals;

/// Only wakes: what has happened, the main loop sees for itself.
pub(super) struct Wake {
    pub(super) end: EndSignal,
    pub(super) signals: EndingSignals,
    pub(super) agent: Option<AgentLink>,
}

impl MutEventSubscriber for Wake {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let fd = events.fd();
        if fd == self.signals.as_raw_fd() {
            while let Some(number) = self.signals.next() {
                self.end.raise(Cause::Ending(Ending::Signal(number)));
            }
        } else if fd == self.end.event().as_raw_fd() {
            let _ = self.end.event().read();
        } else if let Some(agent) = &self.agent {
            let _ = agent.news().read();
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let mut sources = vec![self.end.event().as_raw_fd(), self.signals.as_raw_fd()];
        sources.extend(self.agent.iter().map(|agent| agent.news().as_raw_fd()));
        for source in sources {
            if let Err(error) = ops.add(Events::new_raw(source, EventSet::IN)) {
                let failed = format!("cannot watch a descriptor: {error}");
                self.end.raise(Cause::Ending(Ending::Failed(failed)));
            }
        }
    }
}

//! The host's vsock port that the agent dials, served in this process.

use std::collections::BTreeMap;

use super::agent_link::{AgentCall, AgentLink};
use crate::devices::virtio::vsock::{HostConnection, HostPort, Outbox};

/// Calls that are listened to at once. The agent makes one; others can only be
/// mistaken or malicious.
const MAX_CALLS: usize = 4;

/// Passes what comes on the port to an [`AgentLink`].
pub(super) struct AgentPort {
    link: AgentLink,
    calls: BTreeMap<HostConnection, AgentCall>,
}

impl AgentPort {
    pub(super) fn new(link: AgentLink) -> Self {
        Self {
            link,
            calls: BTreeMap::new(),
        }
    }
}

impl HostPort for AgentPort {
    fn on_connect(&mut self, connection: HostConnection, out: &mut Outbox) {
        if self.calls.len() >= MAX_CALLS {
            out.close();
            return;
        }
        self.calls.insert(connection, self.link.call());
    }

    fn on_data(&mut self, connection: HostConnection, data: &[u8], out: &mut Outbox) {
        let Some(call) = self.calls.get_mut(&connection) else {
            return;
        };
        let was_agent = call.is_agent();
        let over = match call.receive(data) {
            Ok(answer) => {
                out.send(&answer);
                if call.is_agent() && !was_agent {
                    self.link.is_on(connection);
                }
                call.is_over()
            }
            // The link remembers why.
            Err(_) => true,
        };
        if over {
            self.on_close(connection);
            out.close();
        }
    }

    fn on_close(&mut self, connection: HostConnection) {
        self.calls.remove(&connection);
        self.link.has_left(connection);
    }
}

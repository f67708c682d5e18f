//! The one waiter: whoever of the agent's children ends, ends here.

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use super::connection::Stage;
use super::timers::{Due, now};
use super::{Agent, Child, GRACE};
use crate::protocol::Exit;
use crate::sys;
use crate::vps::exit;

impl Agent {
    /// Reaps all children that have ended, then tells whoever it concerns.
    ///
    /// Each is looked up before it is reaped: until then its PID is its own.
    pub(super) fn reap(&mut self) {
        let mut ended = Vec::new();
        while let Some(raw) = sys::peek_child() {
            let child = self.children.remove(&raw);
            let Some(pid) = Pid::from_raw(raw) else { break };
            let status = waitid(
                WaitId::Pid(pid),
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
            );
            let Ok(Some(status)) = status else { break };
            // Orphans that PID 1 has inherited end unnoticed.
            if let Some(child) = child {
                ended.push((child, status));
            }
        }
        for (child, status) in ended {
            match child {
                Child::Session(id) => self.session_ended(id, exit::from_wait(&status)),
                Child::WriteOut(number) => {
                    let errno = status.exit_status().unwrap_or(libc::EIO);
                    self.written(number, errno);
                }
                Child::Init(name) => {
                    if let Ok(supervisor) = &mut self.supervisor {
                        supervisor.ended(&name, exit::of_init(&status));
                    }
                }
            }
        }
        self.apply_effects();
        self.carry_out();
    }

    /// The process of connection `id`'s session has ended.
    pub(super) fn session_ended(&mut self, id: u32, exit: Exit) {
        let Some(mut connection) = self.connections.remove(&id) else {
            return;
        };
        if let Stage::Process(process) = &mut connection.stage {
            process.ended(exit);
            self.timers.set(now() + GRACE, Due::Grace(id));
        }
        self.settle(connection);
    }
}

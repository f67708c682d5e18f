//! Requests.

use super::Agent;
use super::connection::{Connection, Stage, failure};
use super::poller::Token;
use crate::protocol::{Code, Failure, Frame, FrameError, Hello, MAJOR, MINOR, Message, VpsInfo};
use crate::supervisor::{Supervisor, Waiter};

/// Answers a frame that could not be decoded; false when the stream is lost.
pub(super) fn refuse_frame(connection: &mut Connection, id: u32, error: &FrameError) -> bool {
    if connection.stage.is_passing() {
        return false;
    }
    let code = match error {
        FrameError::Length(_) => return false,
        FrameError::Kind(_) => Code::Unsupported,
        FrameError::Body { .. } => Code::Invalid,
    };
    connection
        .outbox
        .push(id, Message::Error(failure(code, error.to_string())));
    true
}

/// What the agent says of itself first.
pub(crate) fn hello(secret: &[u8]) -> Message {
    Message::Hello(Hello {
        major: MAJOR,
        minor: MINOR,
        build: concat!("insula-agent ", env!("CARGO_PKG_VERSION")).into(),
        secret: secret.to_vec(),
    })
}

impl Agent {
    /// Handles one frame; false when the connection is to be dropped.
    pub(super) fn take_frame(&mut self, connection: &mut Connection, frame: Frame) -> bool {
        match connection.stage {
            Stage::Greeting(_) => Self::greet(connection, frame),
            Stage::Control => {
                self.take_request(connection, frame);
                true
            }
            Stage::Finishing => true,
            _ => self.take_session_message(connection, frame.message),
        }
    }

    fn greet(connection: &mut Connection, frame: Frame) -> bool {
        let Message::Hello(theirs) = frame.message else {
            return false;
        };
        let Stage::Greeting(secret) = &connection.stage else {
            return false;
        };
        if !secret.matches(&theirs.secret) {
            let text = "the token in the hello is wrong; give the content of the token file";
            connection.finish(Message::Error(failure(Code::Denied, text)));
            return true;
        }
        connection.outbox.push(frame.id, hello(&[]));
        connection.stage = if theirs.major == MAJOR {
            Stage::Control
        } else {
            Stage::Finishing
        };
        true
    }

    fn partitioned(&mut self) -> Result<&mut Supervisor, Failure> {
        self.supervisor.as_mut().map_err(|why| Failure {
            code: Code::Unsupported,
            message: format!("this agent cannot have VPSs here: {}", why.message),
            errno: why.errno,
        })
    }

    fn take_request(&mut self, connection: &mut Connection, frame: Frame) {
        let id = frame.id;
        let waiter = Waiter {
            connection: connection.id,
            request: id,
        };
        let one = |info: Result<VpsInfo, Failure>| info.map(|info| Some(Message::Vps(info)));
        let answer = match frame.message {
            Message::Ping => Ok(Some(Message::Done)),
            Message::GetInfo => Ok(Some(Message::Info(self.facts()))),
            Message::Suspend => self.suspend(waiter).map(|()| None),
            Message::Resume => {
                self.todo.extend(self.suspension.resume(Some(waiter)));
                Ok(None)
            }
            Message::PowerOff => {
                self.end();
                Ok(Some(Message::Done))
            }
            Message::VpsCreate(spec) => one(self
                .refuse_while_held()
                .and_then(|()| self.partitioned()?.create(spec, None))),
            Message::VpsStart(named) => {
                one(self.partitioned().and_then(|all| all.start(&named.name)))
            }
            Message::VpsGet(named) => one(self.partitioned().and_then(|all| all.info(&named.name))),
            Message::VpsList => Ok(Some(Message::VpsAll(
                self.supervisor
                    .as_ref()
                    .map_or_else(|_| Vec::new(), Supervisor::list),
            ))),
            Message::VpsStop(stop) => self
                .partitioned()
                .and_then(|all| all.stop(&stop.name, stop.timeout_ms, stop.restart, waiter))
                .map(|()| None),
            Message::VpsDestroy(destroy) => self
                .partitioned()
                .and_then(|all| all.destroy(&destroy.name, destroy.force, waiter))
                .map(|()| None),
            session @ (Message::Exec(_)
            | Message::Run(_)
            | Message::Console(_)
            | Message::Put(_)
            | Message::Get(_)
            | Message::Subscribe(_)) => {
                connection.session = id;
                if let Err(failure) = self.begin_session(connection, session) {
                    connection.finish(Message::Error(failure));
                }
                Ok(None)
            }
            other => Err(failure(
                Code::Invalid,
                format!("message kind {} is not a request", other.kind()),
            )),
        };
        match answer {
            Ok(Some(message)) => connection.outbox.push(id, message),
            Ok(None) => {}
            Err(failure) => connection.outbox.push(id, Message::Error(failure)),
        }
        if matches!(connection.stage, Stage::Finishing) {
            self.limit(connection);
        }
    }

    /// Answers a request that had to wait.
    pub(super) fn answer(&mut self, waiter: Waiter, message: Message) {
        // The one who asked may be gone, or be the connection in hand, whose
        // request then was answered at once.
        if let Some(mut connection) = self.connections.remove(&waiter.connection) {
            connection.outbox.push(waiter.request, message);
            self.settle(connection);
        }
    }

    pub(super) fn on_console(&mut self, number: u32) {
        let Ok(supervisor) = &mut self.supervisor else {
            return;
        };
        let Some(name) = supervisor.console_owner(number) else {
            return;
        };
        let Ok(console) = supervisor.console(&name) else {
            return;
        };
        let Some(open) = &console.open else { return };
        let mut bytes = [0; 4096];
        if let Ok(count @ 1..) = rustix::io::read(&open.master, &mut bytes) {
            console.ring.push(&bytes[..count]);
        }
        self.refresh(|stage| matches!(stage, Stage::Console(shown, _) if *shown == name));
    }

    pub(super) fn watch_console(&mut self, name: &crate::protocol::Name) {
        let Ok(supervisor) = &mut self.supervisor else {
            return;
        };
        let Ok(console) = supervisor.console(name) else {
            return;
        };
        let Some(open) = &mut console.open else {
            return;
        };
        let wanted = rustix::event::epoll::EventFlags::IN;
        let token = Token::Console(open.number);
        if let Err(e) = self
            .poller
            .set(&open.master, token, &mut open.registered, wanted)
        {
            super::log(&format!("cannot watch the console of VPS {name}: {e}"));
        }
    }

    pub(super) fn console_has(&self, name: &crate::protocol::Name, position: u64) -> bool {
        self.supervisor
            .as_ref()
            .is_ok_and(|all| all.console_has(name, position))
    }
}

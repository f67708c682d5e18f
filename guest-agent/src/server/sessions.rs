//! Sessions: a connection that becomes a process's, a file's, a console's.

use super::connection::{Connection, Stage, failure};
use super::files::{Reading, Writing};
use super::process::{self, Process, pipes};
use super::{Agent, Child, conclude};
use crate::machine::{self, SessionCgroup};
use crate::protocol::{
    CHUNK, Code, Exec, Failure, Message, Name, Run, Started, StdinCredit, Target, frame,
};
use crate::supervisor::{OpenConsole, RunStreams, engine_failure};
use crate::vps::Io;
use crate::vps::launch::window_size;

fn short_of(what: &str) -> impl Fn(rustix::io::Errno) -> Failure {
    let message = format!("cannot make {what}");
    move |errno| Failure {
        code: Code::Exhausted,
        message: format!("{message}: {errno}"),
        errno: Some(errno.raw_os_error()),
    }
}

impl Agent {
    pub(super) fn begin_session(
        &mut self,
        connection: &mut Connection,
        message: Message,
    ) -> Result<(), Failure> {
        if self.ending.is_some() {
            return Err(failure(Code::State, "the agent is about to end"));
        }
        if matches!(
            message,
            Message::Exec(_) | Message::Run(_) | Message::Put(_)
        ) {
            self.refuse_while_held()?;
        }
        match message {
            Message::Exec(exec) => self.begin_exec(connection, &exec),
            Message::Run(run) => self.begin_run(connection, run),
            Message::Console(console) => {
                let supervisor = self.supervisor.as_mut().map_err(|why| why.clone())?;
                let shown = supervisor.console(&console.name)?;
                connection.stage = Stage::Console(console.name, shown.ring.start());
                Ok(())
            }
            Message::Put(put) => {
                let unique = connection.id;
                let root = self.machine_root()?;
                let writing = Writing::begin(root, &put.path, put.mode, unique)?;
                connection.stage = Stage::Writing(Box::new(writing));
                Ok(())
            }
            Message::Get(get) => {
                let reading = Reading::begin(self.machine_root()?, &get.path)?;
                connection.stage = Stage::Reading(Box::new(reading));
                Ok(())
            }
            Message::Subscribe(subscribe) => {
                connection.stage = Stage::Events(subscribe.since);
                Ok(())
            }
            _ => Err(failure(Code::Invalid, "not a session")),
        }
    }

    fn begin_exec(&mut self, connection: &mut Connection, exec: &Exec) -> Result<(), Failure> {
        let pipes = match exec.terminal {
            None => Some(pipes().map_err(short_of("pipes for a process"))?),
            Some(_) => None,
        };
        let (ends, far) = pipes.map_or((None, None), |(ends, far)| (Some(ends), Some(far)));
        let files = far.as_ref().map(process::FarEnds::borrowed);
        let io = match (files, exec.terminal) {
            (Some(files), _) => Io::Files(files),
            (None, size) => Io::Terminal(size.unwrap_or(process::NO_SIZE)),
        };
        let spawned = match &exec.target {
            Target::Machine => {
                if let Some(sessions) = &mut self.sessions {
                    sessions.make()?;
                }
                let place = machine::Place {
                    root: self.machine.root()?,
                    cgroup: self.sessions.as_ref().and_then(SessionCgroup::made),
                    protected: self.protected,
                };
                machine::spawn(&place, exec, &io).map_err(|e| engine_failure(&e))?
            }
            Target::Vps(name) => {
                let supervisor = self.supervisor.as_ref().map_err(Clone::clone)?;
                supervisor.exec(name, exec, &io)?
            }
        };
        drop(far);
        let pid = spawned.pid;
        self.children.insert(pid, Child::Session(connection.id));
        Self::become_process(connection, pid, ends, spawned.terminal)
    }

    fn begin_run(&mut self, connection: &mut Connection, run: Run) -> Result<(), Failure> {
        let name = run.spec.name.clone();
        let pipes = match run.terminal {
            None => Some(pipes().map_err(short_of("pipes for a process"))?),
            Some(_) => None,
        };
        let (ends, far) = pipes.map_or((None, None), |(ends, far)| (Some(ends), Some(far)));
        let files = far.as_ref().map(process::FarEnds::borrowed);
        let io = match (files, run.terminal) {
            (Some(files), _) => Io::Files(files),
            (None, size) => Io::Terminal(size.unwrap_or(process::NO_SIZE)),
        };
        let supervisor = self.supervisor.as_mut().map_err(|why| why.clone())?;
        supervisor.create(run.spec, Some(connection.id))?;
        let started = supervisor.start_run(&name, &RunStreams { io, env: &run.env });
        let (pid, terminal) = started.inspect_err(|_| supervisor.abandon(&name))?;
        drop(far);
        let become_process = Self::become_process(connection, pid, ends, terminal);
        if become_process.is_err() {
            supervisor.abandon(&name);
        }
        if let Stage::Process(process) = &mut connection.stage {
            process.init_of = Some(name);
        }
        become_process
    }

    fn become_process(
        connection: &mut Connection,
        pid: i32,
        ends: Option<[std::os::fd::OwnedFd; 3]>,
        terminal: Option<std::os::fd::OwnedFd>,
    ) -> Result<(), Failure> {
        let process = match (ends, terminal) {
            (Some(ends), _) => Process::with_pipes(pid, ends),
            (None, Some(master)) => Process::with_terminal(pid, master),
            (None, None) => return Err(failure(Code::Internal, "the process has no terminal")),
        };
        let process = process.map_err(short_of("a process's streams"))?;
        connection.stage = Stage::Process(Box::new(process));
        connection.say(Message::Started(Started { pid: pid as u32 }));
        Ok(())
    }

    /// Handles a message in a session; false when the connection is to be dropped.
    pub(super) fn take_session_message(
        &mut self,
        connection: &mut Connection,
        message: Message,
    ) -> bool {
        let session = connection.session;
        match (&mut connection.stage, message) {
            (Stage::Process(process), Message::Stdin(bytes)) => process.feed(&bytes),
            (Stage::Process(process), Message::StdinEof) => {
                process.end_input();
                true
            }
            (Stage::Process(process), Message::Resize(resize)) => {
                process.resize(resize.terminal);
                true
            }
            (Stage::Process(process), Message::Signal(signal)) => {
                process.signal(i32::from(signal.signal));
                true
            }
            (Stage::Writing(writing), Message::Stdin(bytes)) => {
                match writing.write(&bytes) {
                    Ok(()) => {
                        let bytes = bytes.len() as u32;
                        let credit = Message::StdinCredit(StdinCredit { bytes });
                        connection.outbox.push(session, credit);
                    }
                    Err(failure) => connection.finish(Message::Error(failure)),
                }
                true
            }
            (Stage::Writing(_), Message::StdinEof) => {
                let stage = std::mem::replace(&mut connection.stage, Stage::Finishing);
                if let Stage::Writing(writing) = stage {
                    let last = writing
                        .commit()
                        .map_or_else(Message::Error, |()| Message::Done);
                    connection.finish(last);
                }
                true
            }
            (Stage::Console(name, _), Message::Stdin(bytes)) => {
                if let Some(open) = self.open_console(name) {
                    // A terminal whose input is full loses what comes, as any.
                    let _ = rustix::io::write(&open.master, &bytes);
                }
                let bytes = bytes.len() as u32;
                connection.say(Message::StdinCredit(StdinCredit { bytes }));
                true
            }
            (Stage::Console(name, _), Message::Resize(resize)) => {
                if let Some(open) = self.open_console(name) {
                    // A terminal that is about to go needs no size.
                    let size = window_size(resize.terminal);
                    let _ = rustix::termios::tcsetwinsize(&open.master, size);
                }
                true
            }
            (_, Message::StdinEof | Message::Resize(_) | Message::Signal(_)) => true,
            (_, other) => {
                let text = format!("message kind {} has no place in this session", other.kind());
                connection.finish(Message::Error(failure(Code::Invalid, text)));
                true
            }
        }
    }

    /// The terminal of a VPS's console, while it runs.
    fn open_console(&mut self, name: &Name) -> Option<&OpenConsole> {
        let console = self.supervisor.as_mut().ok()?.console(name).ok()?;
        console.open.as_ref()
    }

    /// Moves what can be moved without waiting.
    pub(super) fn advance(&mut self, connection: &mut Connection) {
        let session = connection.session;
        let before = matches!(connection.stage, Stage::Finishing);
        match &mut connection.stage {
            Stage::Process(process) => {
                process.pour(session, &mut connection.outbox);
                conclude(connection);
            }
            Stage::Reading(reading) => {
                self.scratch.resize(CHUNK, 0);
                match reading.read(session, &mut self.scratch, &mut connection.outbox) {
                    Ok(true) => connection.finish(Message::Done),
                    Ok(false) => {}
                    Err(failure) => connection.finish(Message::Error(failure)),
                }
            }
            Stage::Console(name, position) => {
                self.scratch.resize(CHUNK, 0);
                let shown = self.supervisor.as_mut().map_err(|why| why.clone());
                match shown.and_then(|all| all.console(name)) {
                    Ok(console) => {
                        while connection.outbox.has_room() && console.ring.has(*position) {
                            let (count, behind) = console.ring.read(*position, &mut self.scratch);
                            *position = behind;
                            let bytes = &self.scratch[..count];
                            connection.outbox.push_data(frame::STDOUT, session, bytes);
                        }
                    }
                    Err(failure) => connection.finish(Message::Error(failure)),
                }
            }
            Stage::Events(next) => {
                while connection.outbox.has_room()
                    && let Some(event) = self.events.at(*next)
                {
                    *next = event.sequence + 1;
                    connection
                        .outbox
                        .push(session, Message::Event(event.clone()));
                }
            }
            Stage::Greeting(_) | Stage::Control | Stage::Writing(_) | Stage::Finishing => {}
        }
        if !before && matches!(connection.stage, Stage::Finishing) {
            self.limit(connection);
        }
    }
}

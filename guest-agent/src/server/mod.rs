//! The agent's event loop: one thread, level-triggered, everything bounded.
//!
//! A client that is slow or stuck is held up alone: what is read from its
//! process waits in pipes, and nothing here waits for anybody. Children are
//! reaped before their output is looked at, because a process in a VPS that
//! was not reaped keeps the whole VPS from ending.

mod callers;
mod connection;
pub(crate) mod console;
mod control;
mod effects;
mod events;
mod facts;
mod files;
mod holding;
mod host_line;
mod listener;
mod outbox;
mod poller;
mod process;
mod reaper;
mod sessions;
mod suspension;
pub(crate) mod timers;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use thiserror::Error;

use self::connection::{Connection, Stage};
use self::events::EventLog;
use self::holding::Held;
pub use self::host_line::{Assume, HostLine, SetClock, Ways};
pub use self::listener::Listener;
use self::poller::{Poller, Token};
use self::process::Progress;
use self::suspension::{Step, Suspension};
use self::timers::{Due, MS, Timers, now};
use crate::machine::{Machine, MachineRoot, SessionCgroup};
use crate::protocol::{Failure, Message, Name};
use crate::supervisor::Supervisor;
use crate::sys;

pub(crate) use self::connection::failure;
pub(crate) use self::control::hello;

/// How long output may come after a process's end, while others keep it open.
const GRACE: u64 = 200 * MS;
/// How long VPSs may take to stop when the agent ends.
const STOP_TIMEOUT_MS: u32 = 10_000;
/// How much longer the agent waits for what cannot be killed.
const LAST_WAIT: u64 = 5_000 * MS;

/// What the agent is to serve.
#[derive(Debug)]
pub struct Setup {
    /// Where clients call.
    pub listeners: Vec<Listener>,
    /// The agent's own call to the host, kept open.
    pub host: Option<HostLine>,
    /// The VPSs; or why there can be none here.
    pub supervisor: Result<Supervisor, Failure>,
    /// Where sessions outside of VPSs run.
    pub machine: Machine,
    /// The cgroup of those; `None`: they share the agent's, and cannot be held.
    pub sessions: Option<SessionCgroup>,
    /// A directory of the file system that is written out for a snapshot.
    pub disk: Option<PathBuf>,
    /// The agent is spared by the OOM killer and its children are not to be.
    pub protected: bool,
}

/// Why the agent could not go on serving.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The kernel does not say what happens.
    #[error("cannot wait for events: {0}")]
    Wait(#[from] Errno),
    /// A copy of a guest could not be made a machine of its own.
    #[error("{0}")]
    Restore(String),
}

/// What a child process is to the agent.
#[derive(Debug)]
enum Child {
    /// The process of that connection's session.
    Session(u32),
    /// The init of that VPS.
    Init(Name),
    /// Writes the disk out, for the so-manyth time.
    WriteOut(u32),
}

/// The agent.
#[derive(Debug)]
pub struct Agent {
    poller: Poller,
    signals: OwnedFd,
    listeners: Vec<(Listener, EventFlags)>,
    host: Option<HostLine>,
    connections: BTreeMap<u32, Connection>,
    next_connection: u32,
    children: BTreeMap<i32, Child>,
    timers: Timers,
    events: EventLog,
    supervisor: Result<Supervisor, Failure>,
    machine: Machine,
    sessions: Option<SessionCgroup>,
    disk: Option<PathBuf>,
    protected: bool,
    scratch: Vec<u8>,
    suspension: Suspension,
    /// When the timer for that is set.
    suspension_due: Option<u64>,
    /// What is to be done for it.
    todo: Vec<Step>,
    held: Vec<Held>,
    write_outs: u32,
    /// Why this copy of a guest must not go on.
    failed: Option<String>,
    /// When the agent ends at the latest, once it was told to.
    ending: Option<u64>,
}

/// Tells whoever reads the agent's standard error.
pub(crate) fn log(text: &str) {
    // Without a reader there is nobody to complain to.
    let _ = writeln!(io::stderr(), "insula-agent: {text}");
}

impl Agent {
    /// Prepares to serve. Blocks all signals of this process: from here on
    /// they arrive in the loop.
    ///
    /// # Errors
    /// The kernel refuses an epoll or signal descriptor.
    pub fn new(setup: Setup) -> io::Result<Self> {
        sys::block_signals()?;
        let signals = sys::signal_fd(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGPWR])?;
        let poller = Poller::new()?;
        let mut unregistered = EventFlags::empty();
        poller.set(&signals, Token::Signals, &mut unregistered, EventFlags::IN)?;
        if let Some(memory) = setup
            .supervisor
            .as_ref()
            .ok()
            .and_then(Supervisor::memory_watch)
        {
            let mut unregistered = EventFlags::empty();
            poller.set(memory, Token::Memory, &mut unregistered, EventFlags::IN)?;
        }
        let mut agent = Self {
            poller,
            signals,
            listeners: setup
                .listeners
                .into_iter()
                .map(|l| (l, EventFlags::empty()))
                .collect(),
            host: setup.host,
            connections: BTreeMap::new(),
            next_connection: 1,
            children: BTreeMap::new(),
            timers: Timers::default(),
            events: EventLog::default(),
            supervisor: setup.supervisor,
            machine: setup.machine,
            sessions: setup.sessions,
            disk: setup.disk,
            protected: setup.protected,
            scratch: Vec::new(),
            suspension: Suspension::default(),
            suspension_due: None,
            todo: Vec::new(),
            held: Vec::new(),
            write_outs: 0,
            failed: None,
            ending: None,
        };
        if let Some(host) = &mut agent.host {
            host.watch(&agent.poller)?;
        }
        agent.listen();
        Ok(agent)
    }

    /// Starts the VPSs that are to start with the machine.
    pub fn autostart(&mut self) {
        if let Ok(supervisor) = &mut self.supervisor {
            for complaint in supervisor.autostart() {
                log(&complaint);
            }
        }
        self.apply_effects();
    }

    /// Serves until told to end; then all VPSs are down.
    ///
    /// # Errors
    /// A [`ServeError`]; the agent has to end, whatever runs.
    pub fn run(&mut self) -> Result<(), ServeError> {
        let mut ready = Vec::new();
        loop {
            if let Some(why) = self.failed.take() {
                return Err(ServeError::Restore(why));
            }
            if self.is_over() {
                return Ok(());
            }
            ready.clear();
            self.poller
                .wait(self.timers.until_next(now()), &mut ready)?;
            for &(token, flags) in &ready {
                self.guarded(|agent| agent.dispatch(token, flags));
            }
            while let Some(due) = self.timers.pop(now()) {
                self.guarded(|agent| agent.expire(due));
            }
        }
    }

    /// The connection to the host, for the agent's last words.
    pub fn into_host(self) -> Option<OwnedFd> {
        self.host.and_then(HostLine::into_socket)
    }

    /// A panic ends what it was about and not the agent: the connection that
    /// was being handled is out of the table, and closes as it is dropped.
    fn guarded(&mut self, event: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| event(self))).is_err() {
            log("an event's handler panicked; its connection was dropped");
        }
    }

    fn is_over(&self) -> bool {
        let Some(deadline) = self.ending else {
            return false;
        };
        let busy = self.supervisor.as_ref().map_or(0, Supervisor::busy);
        let unsent = self
            .connections
            .values()
            .any(|c| matches!(c.stage, Stage::Control | Stage::Finishing) && c.outbox.len() > 0);
        (busy == 0 && !unsent) || now() >= deadline
    }

    /// Begins to end: all VPSs stop. The caller applies the effects.
    fn end(&mut self) {
        if self.ending.is_some() {
            return;
        }
        let deadline = now() + u64::from(STOP_TIMEOUT_MS) * MS + LAST_WAIT;
        self.ending = Some(deadline);
        // Those that are held could not end.
        self.todo.extend(self.suspension.resume(None));
        self.timers.set(deadline, Due::Closing(0));
        if let Ok(supervisor) = &mut self.supervisor {
            supervisor.stop_all(STOP_TIMEOUT_MS);
        }
        for connection in self.connections.values() {
            if let Stage::Process(process) = &connection.stage {
                process.hang_up();
            }
        }
        self.listen();
    }

    fn dispatch(&mut self, token: Token, flags: EventFlags) {
        match token {
            Token::Signals => {
                while let Some(signal) = sys::read_signal(&self.signals) {
                    if signal != libc::SIGCHLD {
                        self.end();
                    }
                }
                // One signal can stand for many children.
                self.reap();
            }
            Token::Host => self.hear_host(),
            Token::Listener(index) => self.accept(index),
            Token::Socket(id) => self.on_socket(id, flags),
            Token::Stream(id, which) => self.on_stream(id, which),
            Token::Console(number) => self.on_console(number),
            Token::Held(_) => {
                self.look_at_held();
                self.carry_out();
            }
            Token::Memory => {
                if let Ok(supervisor) = &mut self.supervisor {
                    supervisor.memory_changed();
                }
                self.apply_effects();
            }
        }
    }

    fn expire(&mut self, due: Due) {
        match due {
            Due::Closing(id) => self.close_late(id),
            Due::Grace(id) => {
                let Some(mut connection) = self.connections.remove(&id) else {
                    return;
                };
                if let Stage::Process(process) = &mut connection.stage {
                    process.end_grace();
                }
                self.settle(connection);
            }
            Due::Vps(name) => {
                if let Ok(supervisor) = &mut self.supervisor {
                    supervisor.attend(&name);
                }
                self.apply_effects();
            }
            Due::Dial => self.dial_host(),
            Due::Suspension => {
                self.suspension_due = None;
                self.todo.extend(self.suspension.expire(now()));
                self.carry_out();
            }
        }
    }

    /// The root of machine sessions, prepared when it is first needed.
    fn machine_root(&mut self) -> Result<Option<&MachineRoot>, Failure> {
        self.machine.root()
    }
}

/// Ends a session whose process's end and output have been seen.
fn conclude(connection: &mut Connection) {
    let Stage::Process(process) = &connection.stage else {
        return;
    };
    if let Progress::Ended(exit) = process.progress() {
        connection.finish(Message::Exited(exit));
    }
}

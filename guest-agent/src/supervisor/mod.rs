//! The VPSs of this kernel: their definitions, their lives, their consoles.
//!
//! The supervisor knows nothing of connections. What others must do for it (a
//! reply, a timer, an event) it leaves in [`Supervisor::take_effects`], which
//! the event loop carries out.

mod life;
mod listening;
mod store;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::event::epoll::EventFlags;
use rustix::io::ioctl_fionbio;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};

use self::life::{After, Hearing, Life, StopStep};
use self::listening::{handled_signals, only_sleeps};
use self::store::{Definition, Store};
use crate::protocol::{
    Code, EventKind, Exec, Exit, Failure, Init, Name, Terminal, Usage, VpsInfo, VpsSpec, VpsState,
};
use crate::server::console::Ring;
use crate::server::failure;
use crate::server::timers::{MS, now};
use crate::sys;
use crate::vps::{self, Engine, EngineConfig, Io, Running, Start, Template, TemplateSource, Vps};

/// The size of a console that nobody has attached to yet.
const CONSOLE: Terminal = Terminal {
    rows: 24,
    columns: 80,
};
/// Between two attempts to clear away what is left of a VPS.
const CLEAR_EVERY: u64 = 20 * MS;
/// So often that is tried: processes in uninterruptible sleep end some time,
/// or never.
const CLEAR_ATTEMPTS: u32 = 500;

/// An init command that handles no stop signal at this age never will …
const COMMAND_GROWN_UP: u64 = 1_000 * MS;
/// … and a template's init, which has more to do first, at this.
const TEMPLATE_GROWN_UP: u64 = 10_000 * MS;

/// Where templates come from.
#[derive(Debug, Clone, Default)]
pub struct Templates {
    /// By name.
    pub named: BTreeMap<Name, TemplateSource>,
    /// A directory with `NAME.erofs` images and `NAME/` directories.
    pub directory: Option<PathBuf>,
    /// Where images are mounted, each in a directory of its name.
    pub mount_dir: PathBuf,
}

impl Templates {
    fn source(&self, name: &Name) -> Option<TemplateSource> {
        if let Some(source) = self.named.get(name) {
            return Some(source.clone());
        }
        let directory = self.directory.as_ref()?;
        let image = directory.join(format!("{name}.erofs"));
        if image.is_file() {
            return Some(TemplateSource::Erofs(image));
        }
        let tree = directory.join(name.as_str());
        tree.is_dir().then_some(TemplateSource::Directory(tree))
    }

    /// The names of all of them.
    pub(crate) fn names(&self) -> Vec<Name> {
        let mut names: Vec<Name> = self.named.keys().cloned().collect();
        let entries = self
            .directory
            .as_ref()
            .and_then(|path| fs::read_dir(path).ok());
        for entry in entries.into_iter().flatten().flatten() {
            let file_name = entry.file_name();
            let Some(text) = file_name.to_str() else {
                continue;
            };
            let stem = text.strip_suffix(".erofs").unwrap_or(text);
            let Ok(name) = Name::new(stem) else { continue };
            if !names.contains(&name) && self.source(&name).is_some() {
                names.push(name);
            }
        }
        names.sort();
        names
    }
}

/// Who waits for a VPS to be down, or up again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiter {
    pub(crate) connection: u32,
    pub(crate) request: u32,
}

/// What others must do for the supervisor.
#[derive(Debug)]
pub(crate) enum Effect {
    /// This process is the init of that VPS.
    Init(i32, Name),
    /// The waiter's VPS is as was asked; or not.
    Settled(Waiter, Result<Box<VpsInfo>, Failure>),
    /// The waiter's VPS is destroyed; or not.
    Destroyed(Waiter, Result<(), Failure>),
    /// The VPS that this connection ran has ended.
    RunEnded(u32, Exit),
    /// Something to tell those who follow events.
    Event(Name, EventKind),
    /// The VPS wants attention at that time.
    Attend(u64, Name),
    /// A VPS's console is there to be read, or has gone.
    Console(Name),
}

/// A VPS's console.
#[derive(Debug, Default)]
pub(crate) struct Console {
    pub(crate) ring: Ring,
    pub(crate) open: Option<OpenConsole>,
}

/// The terminal behind a console while the VPS runs.
#[derive(Debug)]
pub(crate) struct OpenConsole {
    pub(crate) master: OwnedFd,
    /// Kept open, so that a VPS that closes its console does not hang it up.
    _slave: OwnedFd,
    pub(crate) number: u32,
    pub(crate) registered: EventFlags,
}

#[derive(Debug)]
struct Record {
    vps: Vps,
    life: Life,
    running: Option<Running>,
    console: Console,
    /// The connection that the VPS lives for, when it is a run's.
    run_by: Option<u32>,
    stop_waiters: Vec<Waiter>,
    destroy_waiters: Vec<Waiter>,
    /// What to do when all that is left is cleared away, and attempts so far.
    clearing: Option<(After, u32)>,
}

/// All VPSs of this kernel.
#[derive(Debug)]
pub struct Supervisor {
    engine: Engine,
    templates: Templates,
    opened: BTreeMap<Name, Template>,
    store: Option<Store>,
    records: BTreeMap<Name, Record>,
    effects: Vec<Effect>,
    next_console: u32,
}

/// The standard streams of a run.
#[derive(Debug)]
pub(crate) struct RunStreams<'a> {
    pub(crate) io: Io<'a>,
    pub(crate) env: &'a [String],
}

/// An engine's error as a failure.
pub(crate) fn engine_failure(error: &vps::Error) -> Failure {
    Failure {
        code: match error {
            vps::Error::CommandNotFound { .. } => Code::CommandNotFound,
            vps::Error::CommandNotExecutable { .. } => Code::CommandNotExecutable,
            vps::Error::Invalid(_) => Code::Invalid,
            vps::Error::Exhausted(_) => Code::Exhausted,
            _ => match error.errno() {
                Some(libc::ENOSPC | libc::EDQUOT | libc::ENOMEM | libc::EAGAIN) => Code::Exhausted,
                _ => Code::Internal,
            },
        },
        message: error.to_string(),
        errno: error.errno(),
    }
}

fn unknown(name: &Name) -> Failure {
    failure(
        Code::NotFound,
        format!("there is no VPS {name}; `insula vps list` shows those there are"),
    )
}

impl Supervisor {
    /// Takes in what an earlier agent left in the state directory and the
    /// cgroup: definitions, half-made and half-destroyed VPSs, processes of
    /// an agent that was killed. Returns also what could not be taken in.
    ///
    /// # Errors
    /// The kernel can't be partitioned here, and why.
    pub fn new(config: EngineConfig, templates: Templates) -> Result<(Self, Vec<String>), Failure> {
        let cgroup_root = config.cgroup_root.clone();
        let state = config.state_dir.clone();
        let engine = Engine::new(config).map_err(|e| engine_failure(&e))?;
        let mut supervisor = Self {
            engine,
            templates,
            opened: BTreeMap::new(),
            store: None,
            records: BTreeMap::new(),
            effects: Vec::new(),
            next_console: 1,
        };
        let mut troubles = Vec::new();
        clear_cgroups(&cgroup_root, &mut troubles);
        if let Some(state) = state {
            supervisor
                .load(&state, &mut troubles)
                .map_err(|e| Failure {
                    code: Code::Internal,
                    message: format!("cannot read the VPSs in {}: {e}", state.display()),
                    errno: e.raw_os_error(),
                })?;
        }
        Ok((supervisor, troubles))
    }

    fn load(&mut self, state: &Path, troubles: &mut Vec<String>) -> io::Result<()> {
        let store = Store::open(state)?;
        let contents = store.load()?;
        for definition in contents.definitions {
            let name = definition.spec.name.clone();
            let adopted = definition.vps().and_then(|vps| {
                self.engine.adopt(&vps).map_err(|e| e.to_string())?;
                Ok(vps)
            });
            match adopted {
                Ok(vps) => {
                    let life = Life::new(definition.boot_count, definition.last_exit);
                    self.records.insert(name, Record::new(vps, life));
                }
                Err(why) => troubles.push(format!("cannot take in VPS {name}: {why}")),
            }
        }
        for (name, why) in contents.unreadable {
            troubles.push(format!("cannot read the definition of VPS {name}: {why}"));
        }
        if !contents.leftovers.is_empty() && matches!(sys::fork(), Ok(None)) {
            // Nothing of the agent's is kept open by this process.
            sys::close_from(3);
            for path in contents.leftovers {
                // What can't be removed is tried again at the next start.
                let _ = fs::remove_dir_all(path);
            }
            sys::exit_now(0);
        }
        self.store = Some(store);
        Ok(())
    }

    /// What others must do now.
    pub(crate) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Names of the templates.
    pub(crate) fn template_names(&self) -> Vec<Name> {
        self.templates.names()
    }

    /// Number of VPSs.
    pub(crate) fn count(&self) -> usize {
        self.records.len()
    }

    /// Number of VPSs whose init runs or that are being cleared away.
    pub(crate) fn busy(&self) -> usize {
        self.records
            .values()
            .filter(|record| record.life.is_up() || record.clearing.is_some())
            .count()
    }

    /// Starts all VPSs that are to start with the guest; returns complaints.
    pub(crate) fn autostart(&mut self) -> Vec<String> {
        let names: Vec<Name> = self
            .records
            .iter()
            .filter(|(_, record)| record.vps.spec.autostart)
            .map(|(name, _)| name.clone())
            .collect();
        let start = |name| {
            let failure = self.start(&name).err()?;
            Some(format!("cannot start VPS {name}: {failure}"))
        };
        names.into_iter().filter_map(start).collect()
    }

    fn record(&mut self, name: &Name) -> Result<&mut Record, Failure> {
        self.records.get_mut(name).ok_or_else(|| unknown(name))
    }

    fn info_of(engine: &Engine, record: &Record) -> VpsInfo {
        let up = record.running.as_ref();
        VpsInfo {
            spec: record.vps.spec.clone(),
            state: record.life.state(),
            boot_count: record.life.boot_count(),
            init_pid: up.map(|running| running.init.pid as u32),
            uptime_ms: record.life.uptime_ms(now()),
            last_exit: record.life.last_exit(),
            failure: record.life.failure().map(str::to_owned),
            usage: up
                .and_then(|_| engine.usage(&record.vps).ok())
                .map(|usage: Usage| usage),
        }
    }

    /// How a VPS is.
    pub(crate) fn info(&self, name: &Name) -> Result<VpsInfo, Failure> {
        let record = self.records.get(name).ok_or_else(|| unknown(name))?;
        Ok(Self::info_of(&self.engine, record))
    }

    /// How all are.
    pub(crate) fn list(&self) -> Vec<VpsInfo> {
        self.records
            .values()
            .map(|record| Self::info_of(&self.engine, record))
            .collect()
    }

    /// Defines a VPS. `run_by`: it lives as long as that connection's run.
    pub(crate) fn create(
        &mut self,
        spec: VpsSpec,
        run_by: Option<u32>,
    ) -> Result<VpsInfo, Failure> {
        let name = spec.name.clone();
        if self.records.contains_key(&name) {
            return Err(failure(
                Code::Exists,
                format!("a VPS {name} exists; destroy it first, or use another name"),
            ));
        }
        if let Init::Command(command) = &spec.init
            && command.first().is_none_or(String::is_empty)
        {
            return Err(failure(
                Code::Invalid,
                format!("VPS {name} has an empty init command"),
            ));
        }
        self.template(&spec.template)?;
        let vps = self.engine.create(spec).map_err(|e| engine_failure(&e))?;
        if let (Some(store), None) = (&self.store, run_by)
            && let Err(e) = store.save(&Definition::new(&vps, 0, None), true)
        {
            // The error at hand matters more than a leftover.
            let _ = self.engine.destroy(&vps);
            return Err(Failure {
                code: Code::Exhausted,
                message: format!("cannot save the definition of VPS {name}: {e}"),
                errno: e.raw_os_error(),
            });
        }
        let mut record = Record::new(vps, Life::new(0, None));
        record.run_by = run_by;
        let info = Self::info_of(&self.engine, &record);
        self.records.insert(name.clone(), record);
        self.effects.push(Effect::Event(name, EventKind::Created));
        Ok(info)
    }

    /// Opens a template, once.
    fn template(&mut self, name: &Name) -> Result<(), Failure> {
        if self.opened.contains_key(name) {
            return Ok(());
        }
        let source = self.templates.source(name).ok_or_else(|| {
            let known: Vec<String> = self
                .templates
                .names()
                .iter()
                .map(ToString::to_string)
                .collect();
            failure(
                Code::NotFound,
                format!(
                    "there is no template {name} here; there are: {}",
                    known.join(", ")
                ),
            )
        })?;
        let template = Template::open(&source, &self.templates.mount_dir.join(name.as_str()))
            .map_err(|e| engine_failure(&e))?;
        self.opened.insert(name.clone(), template);
        Ok(())
    }

    /// Starts a VPS by hand.
    pub(crate) fn start(&mut self, name: &Name) -> Result<VpsInfo, Failure> {
        let record = self.record(name)?;
        let state = record.life.state();
        if !matches!(state, VpsState::Stopped | VpsState::Failed) || record.clearing.is_some() {
            return Err(failure(
                Code::State,
                format!("VPS {name} is {state} already"),
            ));
        }
        record.life.forgive();
        self.launch(name, None)?;
        self.effects
            .push(Effect::Event(name.clone(), EventKind::Started));
        self.info(name)
    }

    /// Starts the VPS of a run; returns its init's PID and terminal.
    pub(crate) fn start_run(
        &mut self,
        name: &Name,
        streams: &RunStreams<'_>,
    ) -> Result<(i32, Option<OwnedFd>), Failure> {
        self.launch(name, Some(streams))?;
        self.effects
            .push(Effect::Event(name.clone(), EventKind::Started));
        let running = self.record(name)?.running.as_mut();
        Ok(running.map_or((0, None), |running| {
            (running.init.pid, running.init.terminal.take())
        }))
    }

    fn launch(&mut self, name: &Name, run: Option<&RunStreams<'_>>) -> Result<(), Failure> {
        let outcome = self.try_launch(name, run);
        if let Err(failure) = &outcome
            && let Some(record) = self.records.get_mut(name)
        {
            record.life.failed(failure.message.clone());
            self.effects.push(Effect::Event(
                name.clone(),
                EventKind::Failed(failure.message.clone()),
            ));
        }
        outcome
    }

    fn try_launch(&mut self, name: &Name, run: Option<&RunStreams<'_>>) -> Result<(), Failure> {
        let template_name = self.record(name)?.vps.spec.template.clone();
        self.template(&template_name)?;
        let Self {
            engine,
            opened,
            records,
            ..
        } = self;
        let (Some(record), Some(template)) = (records.get_mut(name), opened.get(&template_name))
        else {
            return Err(unknown(name));
        };
        let console = Io::Terminal(CONSOLE);
        let start = match run {
            Some(run) => Start {
                env: run.env,
                io: copy_io(&run.io),
            },
            None => Start {
                env: &[],
                io: console,
            },
        };
        let mut running = engine
            .start(&record.vps, template, &start)
            .map_err(|e| engine_failure(&e))?;
        if run.is_none() {
            record.console.open = open_console(&mut running, self.next_console);
            self.next_console = self.next_console.wrapping_add(1);
            self.effects.push(Effect::Console(name.clone()));
        }
        self.effects
            .push(Effect::Init(running.init.pid, name.clone()));
        record.running = Some(running);
        record.life.started(now());
        self.remember(name);
        Ok(())
    }

    /// Saves counters; they are worth less than a start.
    fn remember(&mut self, name: &Name) {
        if let (Some(store), Some(record)) = (&self.store, self.records.get(name))
            && record.run_by.is_none()
        {
            let definition = Definition::new(
                &record.vps,
                record.life.boot_count(),
                record.life.last_exit(),
            );
            if let Err(e) = store.save(&definition, false) {
                crate::server::log(&format!("cannot save the counters of VPS {name}: {e}"));
            }
        }
    }

    /// Starts a process in a running VPS.
    pub(crate) fn exec(
        &self,
        name: &Name,
        exec: &Exec,
        io: &Io<'_>,
    ) -> Result<vps::Process, Failure> {
        let record = self.records.get(name).ok_or_else(|| unknown(name))?;
        let Some(running) = &record.running else {
            let state = record.life.state();
            return Err(failure(
                Code::State,
                format!("VPS {name} is {state}; start it first: insula vps start {name}"),
            ));
        };
        self.engine
            .exec(&record.vps, running, exec, io)
            .map_err(|e| engine_failure(&e))
    }

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
        if self
            .engine
            .usage(&record.vps)
            .is_ok_and(|usage| usage.oom_kills > 0)
        {
            self.effects
                .push(Effect::Event(name.clone(), EventKind::OutOfMemory));
        }
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

    /// The console of a VPS.
    pub(crate) fn console(&mut self, name: &Name) -> Result<&mut Console, Failure> {
        self.record(name).map(|record| &mut record.console)
    }

    /// Whether a VPS's console has something at or behind `position`.
    pub(crate) fn console_has(&self, name: &Name, position: u64) -> bool {
        self.records
            .get(name)
            .is_some_and(|record| record.console.ring.has(position))
    }

    /// The VPS whose console has that number.
    pub(crate) fn console_owner(&self, number: u32) -> Option<Name> {
        self.records
            .iter()
            .find(|(_, record)| {
                record
                    .console
                    .open
                    .as_ref()
                    .is_some_and(|open| open.number == number)
            })
            .map(|(name, _)| name.clone())
    }
}

impl Record {
    fn new(vps: Vps, life: Life) -> Self {
        Self {
            vps,
            life,
            running: None,
            console: Console::default(),
            run_by: None,
            stop_waiters: Vec::new(),
            destroy_waiters: Vec::new(),
            clearing: None,
        }
    }
}

fn copy_io<'a>(io: &Io<'a>) -> Io<'a> {
    match io {
        Io::Inherit => Io::Inherit,
        Io::Files(files) => Io::Files(*files),
        Io::Terminal(size) => Io::Terminal(*size),
    }
}

fn open_console(running: &mut Running, number: u32) -> Option<OpenConsole> {
    let master = running.init.terminal.take()?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags).ok()?;
    ioctl_fionbio(&master, true).ok()?;
    Some(OpenConsole {
        master,
        _slave: slave,
        number,
        registered: EventFlags::empty(),
    })
}

/// Kills and removes the cgroups that an agent that was killed has left.
fn clear_cgroups(root: &Path, troubles: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(root) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if !path.is_dir() {
            continue;
        }
        // An empty cgroup has nobody to kill.
        let _ = fs::write(path.join("cgroup.kill"), "1");
        // They die soon, not at once; nothing else goes on at this time.
        let gone = (0..200).any(|_| {
            remove_cgroups(&path).is_ok() || {
                std::thread::sleep(std::time::Duration::from_millis(5));
                false
            }
        });
        if !gone {
            troubles.push(format!(
                "processes of an earlier agent in {} do not die",
                path.display()
            ));
        }
    }
}

/// Removes a cgroup and those below it, which must be empty of processes.
pub(crate) fn remove_cgroups(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_cgroups(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

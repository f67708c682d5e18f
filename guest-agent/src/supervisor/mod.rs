//! The VPSs of this kernel: their definitions, their lives, their consoles.
//!
//! The supervisor knows nothing of connections. What others must do for it (a
//! reply, a timer, an event) it leaves in [`Supervisor::take_effects`], which
//! the event loop carries out.

mod console;
mod ending;
mod leftovers;
mod life;
mod listening;
mod memory;
mod starting;
mod store;
mod templates;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;

use self::console::Console;
pub(crate) use self::console::OpenConsole;
use self::leftovers::clear_cgroups;
pub(crate) use self::leftovers::remove_cgroups;
use self::life::{After, Life};
use self::memory::MemoryWatch;
pub(crate) use self::starting::RunStreams;
use self::store::{Definition, Store};
pub use self::templates::Templates;
use crate::protocol::{Code, EventKind, Exit, Failure, Init, Name, Usage, VpsInfo, VpsSpec};
use crate::server::failure;
use crate::server::timers::now;
use crate::sys;
use crate::vps::{self, Engine, EngineConfig, Freezer, Running, Template, Vps};

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

#[derive(Debug)]
struct Record {
    vps: Vps,
    life: Life,
    running: Option<Running>,
    console: Console,
    /// The connection that the VPS lives for, when it is a run's.
    run_by: Option<u32>,
    /// Processes that were killed for want of memory since its start, and
    /// told of.
    oom_kills: u64,
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
    /// Unless the kernel has none to give.
    memory: Option<MemoryWatch>,
    next_console: u32,
    /// The processes of all VPSs are held: none is started.
    held: bool,
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
            memory: MemoryWatch::new().ok(),
            next_console: 1,
            held: false,
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

    /// What holds the processes of all VPSs.
    pub(crate) fn freezer(&self) -> Result<Freezer, Errno> {
        self.engine.freezer()
    }

    /// Starts nothing from now on.
    pub(crate) fn hold(&mut self) {
        self.held = true;
    }

    /// Starts again what is asked for, and first what had to wait.
    pub(crate) fn release(&mut self) {
        self.held = false;
        let waiting: Vec<Name> = self
            .records
            .iter()
            .filter(|(_, record)| record.clearing.is_some())
            .map(|(name, _)| name.clone())
            .collect();
        for name in waiting {
            self.attend(&name);
        }
    }

    /// Gives all VPSs identities of their own: this guest is a copy of another
    /// one. Nothing may run in them meanwhile. Returns complaints.
    pub(crate) fn renew_identities(&mut self) -> Vec<String> {
        let mut complaints = Vec::new();
        let names: Vec<Name> = self.records.keys().cloned().collect();
        for name in names {
            let Some(record) = self.records.get_mut(&name) else {
                continue;
            };
            let renewed = self.engine.renew(&mut record.vps, record.running.as_ref());
            if let Err(e) = renewed {
                complaints.push(format!(
                    "VPS {name} has an identity of the guest that this one is a copy of: {e}"
                ));
            }
            self.remember(&name);
        }
        complaints
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
}

impl Record {
    fn new(vps: Vps, life: Life) -> Self {
        Self {
            vps,
            life,
            running: None,
            console: Console::default(),
            run_by: None,
            oom_kills: 0,
            stop_waiters: Vec::new(),
            destroy_waiters: Vec::new(),
            clearing: None,
        }
    }
}

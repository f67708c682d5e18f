//! How VPSs get up, and what else runs in them.

use std::os::fd::OwnedFd;

use super::console::open_console;
use super::store::Definition;
use super::{Effect, Supervisor, engine_failure, unknown};
use crate::protocol::{Code, EventKind, Exec, Failure, Name, Terminal, VpsInfo, VpsState};
use crate::server::failure;
use crate::server::timers::now;
use crate::vps::{self, Io, Start, Template};

/// The size of a console that nobody has attached to yet.
const CONSOLE: Terminal = Terminal {
    rows: 24,
    columns: 80,
};

/// The standard streams of a run.
#[derive(Debug)]
pub(crate) struct RunStreams<'a> {
    pub(crate) io: Io<'a>,
    pub(crate) env: &'a [String],
}

impl Supervisor {
    /// Opens a template, once.
    pub(super) fn template(&mut self, name: &Name) -> Result<(), Failure> {
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
        if self.held {
            return Err(failure(
                Code::State,
                format!(
                    "VPS {name} cannot start while the guest is suspended for a snapshot; try \
                     again when that is over"
                ),
            ));
        }
        let record = self.record(name)?;
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

    pub(super) fn launch(
        &mut self,
        name: &Name,
        run: Option<&RunStreams<'_>>,
    ) -> Result<(), Failure> {
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
        self.watch_memory(name);
        self.remember(name);
        Ok(())
    }

    /// Saves counters; they are worth less than a start.
    pub(super) fn remember(&mut self, name: &Name) {
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
}

fn copy_io<'a>(io: &Io<'a>) -> Io<'a> {
    match io {
        Io::Inherit => Io::Inherit,
        Io::Files(files) => Io::Files(*files),
        Io::Terminal(size) => Io::Terminal(*size),
    }
}

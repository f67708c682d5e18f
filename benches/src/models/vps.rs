//! VPSs through an agent, whichever kernel it partitions.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use guest_agent::client::{Client, ClientError, Endpoint, Session};
use guest_agent::protocol::{
    Exec, Init, Limits, Message, Name, RestartPolicy, Run, Target, VpsSpec,
};

use super::burst::at_once;
use super::{
    Clock, Execution, Instance, InstanceLimits, ModelError, ModelId, PATIENCE, Usage, WORKLOAD,
};
use crate::result::{Event, Waterfall};

/// How often it is asked whether a VPS is gone.
const GONE_INTERVAL: Duration = Duration::from_millis(2);

/// An agent that makes VPSs of the template.
pub struct Agent {
    model: ModelId,
    endpoint: Endpoint,
    template: Name,
    control: Rc<RefCell<Client>>,
    made: u32,
}

impl Agent {
    /// Connects to the agent at `endpoint`, which may still be starting.
    pub(super) fn connect(
        model: ModelId,
        endpoint: Endpoint,
        template: Name,
    ) -> Result<Self, ModelError> {
        let control = Client::connect_until(&endpoint, Instant::now() + PATIENCE)
            .map_err(|error| ModelError::machinery(model, "connecting to the agent", error))?;
        Ok(Self {
            model,
            endpoint,
            template,
            control: Rc::new(RefCell::new(control)),
            made: 0,
        })
    }

    /// Launches a VPS whose init idles.
    pub(super) fn launch(
        &mut self,
        limits: &InstanceLimits,
    ) -> Result<Box<dyn Instance>, ModelError> {
        let spec = self.spec(limits, &["idle"])?;
        let name = spec.name.clone();
        let mut waterfall = Waterfall::new();
        let clock = Clock::start();
        {
            let mut control = self.control.borrow_mut();
            control
                .vps_create(spec)
                .map_err(|error| self.failed("creating a VPS", error))?;
            if let Err(error) = control.vps_start(&name) {
                // The first error is the one to tell.
                let _ = control.vps_destroy(&name, true);
                return Err(self.failed("starting a VPS", error));
            }
        }
        waterfall.set(Event::Ready, clock.elapsed_ns());
        Ok(Box::new(VpsInstance {
            model: self.model,
            endpoint: self.endpoint.clone(),
            control: Rc::clone(&self.control),
            name: Some(name),
            waterfall,
        }))
    }

    /// A VPS that lives as long as `argv`, asked for at `clock`'s start.
    pub(super) fn run_once(
        &mut self,
        limits: &InstanceLimits,
        argv: &[&str],
        clock: Clock,
    ) -> Result<Execution, ModelError> {
        let mut all = self.burst(limits, argv, 1, clock)?;
        let mut execution = all.pop().ok_or_else(|| ModelError::Unavailable {
            model: self.model,
            reason: "the agent ran nothing".into(),
        })?;
        execution.waterfall.set(Event::Returned, clock.elapsed_ns());
        Ok(execution)
    }

    /// `count` VPSs at once that live as long as their `argv`, asked for at
    /// `clock`'s start. They are gone when this returns.
    pub(super) fn burst(
        &mut self,
        limits: &InstanceLimits,
        argv: &[&str],
        count: u32,
        clock: Clock,
    ) -> Result<Vec<Execution>, ModelError> {
        let arguments = argv.get(1..).unwrap_or_default();
        let specs = (0..count)
            .map(|_| self.spec(limits, arguments))
            .collect::<Result<Vec<_>, _>>()?;
        let names: Vec<Name> = specs.iter().map(|spec| spec.name.clone()).collect();
        let (model, endpoint) = (self.model, &self.endpoint);
        let run = |spec| {
            let run = Run {
                spec,
                env: Vec::new(),
                terminal: None,
            };
            // All of them wait while the agent makes the first.
            let client = Client::connect_within(endpoint, PATIENCE)
                .map_err(|error| ModelError::machinery(model, "connecting to the agent", error))?;
            follow(model, client.run(run), clock, PATIENCE)
        };
        let done = at_once(specs, run, Ok);
        self.wait_gone(&names)?;
        done
    }

    /// Waits until the agent no longer knows any of these.
    fn wait_gone(&self, names: &[Name]) -> Result<(), ModelError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let known = self
                .control
                .borrow_mut()
                .vps_list()
                .map_err(|error| self.failed("listing VPSs", error))?;
            let Some(left) = known.iter().find(|vps| names.contains(&vps.spec.name)) else {
                return Ok(());
            };
            if Instant::now() > deadline {
                return Err(ModelError::Left {
                    model: self.model,
                    what: format!("VPS {}", left.spec.name),
                });
            }
            std::thread::sleep(GONE_INTERVAL);
        }
    }

    fn spec(&mut self, limits: &InstanceLimits, arguments: &[&str]) -> Result<VpsSpec, ModelError> {
        self.made += 1;
        let name = format!("cmp-{}-{}", std::process::id(), self.made);
        let name = Name::new(name)
            .map_err(|error| ModelError::machinery(self.model, "naming a VPS", error))?;
        let mut command = vec![WORKLOAD.to_owned()];
        command.extend(arguments.iter().map(|&argument| argument.to_owned()));
        Ok(VpsSpec {
            name,
            template: self.template.clone(),
            hostname: None,
            init: Init::Command(command),
            limits: Limits {
                memory_bytes: Some(limits.memory_bytes),
                cpu_milli: Some(limits.cpus * 1000),
                cpu_weight: None,
                pids: Some(limits.pids),
            },
            autostart: false,
            restart: RestartPolicy::Never,
        })
    }

    fn failed(&self, doing: &str, error: ClientError) -> ModelError {
        ModelError::machinery(self.model, doing, error)
    }
}

/// A VPS that runs.
struct VpsInstance {
    model: ModelId,
    endpoint: Endpoint,
    control: Rc<RefCell<Client>>,
    /// `None` once destroyed.
    name: Option<Name>,
    waterfall: Waterfall,
}

impl VpsInstance {
    fn end(&mut self) -> Result<(), ModelError> {
        let Some(name) = self.name.take() else {
            return Ok(());
        };
        self.control
            .borrow_mut()
            .vps_destroy(&name, true)
            .map_err(|error| {
                ModelError::machinery(self.model, format!("destroying VPS {name}"), error)
            })
    }
}

impl Instance for VpsInstance {
    fn waterfall(&self) -> &Waterfall {
        &self.waterfall
    }

    fn exec(&mut self, argv: &[&str], within: Duration) -> Result<Execution, ModelError> {
        let target = match &self.name {
            Some(name) => Target::Vps(name.clone()),
            None => Target::Machine,
        };
        execute(self.model, &self.endpoint, target, argv, within)
    }

    fn usage(&mut self) -> Result<Usage, ModelError> {
        let Some(name) = &self.name else {
            return Ok(Usage::default());
        };
        let info = self.control.borrow_mut().vps_get(name).map_err(|error| {
            ModelError::machinery(self.model, format!("asking how VPS {name} is"), error)
        })?;
        Ok(info.usage.map_or_else(Usage::default, |usage| Usage {
            cgroup_bytes: Some(usage.memory_bytes),
            cpu_us: Some(usage.cpu_us),
        }))
    }

    fn host_processes(&self) -> Vec<u32> {
        Vec::new()
    }

    fn destroy(mut self: Box<Self>) -> Result<(), ModelError> {
        self.end()
    }
}

impl Drop for VpsInstance {
    fn drop(&mut self) {
        // What can't be destroyed now goes with the agent, which is ours.
        let _ = self.end();
    }
}

/// Executes a program through an agent, on a connection of its own.
pub(super) fn execute(
    model: ModelId,
    endpoint: &Endpoint,
    target: Target,
    argv: &[&str],
    within: Duration,
) -> Result<Execution, ModelError> {
    let exec = Exec {
        target,
        argv: argv.iter().map(|&word| word.to_owned()).collect(),
        env: Vec::new(),
        cwd: None,
        user: None,
        terminal: None,
    };
    let clock = Clock::start();
    let client = Client::connect(endpoint)
        .map_err(|error| ModelError::machinery(model, "connecting to the agent", error))?;
    follow(model, client.exec(exec), clock, within)
}

/// Follows a session to its end and notes when the host learned of what.
fn follow(
    model: ModelId,
    mut session: Session,
    clock: Clock,
    within: Duration,
) -> Result<Execution, ModelError> {
    let deadline = Instant::now() + within;
    let mut waterfall = Waterfall::new();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    session.send(Message::StdinEof);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let message = session.next(Some(left)).map_err(|error| match error {
            ClientError::Timeout { .. } => ModelError::Late {
                what: format!("a program in {model}"),
                within,
            },
            other => ModelError::machinery(model, "running a program", other),
        })?;
        match message {
            Message::Started(_) => waterfall.set(Event::Ready, clock.elapsed_ns()),
            Message::Stdout(bytes) => {
                if waterfall.get(Event::FirstByte).is_none() {
                    waterfall.set(Event::FirstByte, clock.elapsed_ns());
                }
                stdout.extend_from_slice(&bytes);
            }
            Message::Stderr(bytes) => stderr.extend_from_slice(&bytes),
            Message::Exited(exit) => {
                waterfall.set(Event::Exit, clock.elapsed_ns());
                return Ok(Execution {
                    exit_code: exit.shell_code(),
                    stdout,
                    stderr,
                    waterfall,
                });
            }
            _ => {}
        }
    }
}

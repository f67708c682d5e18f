//! What runs in guests: `guest-vps` and `microvm`.

use std::time::Duration;

use guest_agent::protocol::{DiskRole, Name, Target};
use images::kernel::COMMAND_LINE;
use vmm::guest::{Drive, Guest, GuestSpec, RunRoot};

use super::vps::{Agent, execute};
use super::{
    Clock, Conditions, Execution, Images, Instance, InstanceLimits, Model, ModelError, ModelId,
    PATIENCE, Usage, WORKLOAD,
};
use crate::result::{Event, Waterfall};

/// Memory of the guest that all VPSs share, in MiB.
const SHARED_MEMORY_MIB: u64 = 512;

/// Launches guests of the images.
struct Launcher {
    model: ModelId,
    images: Images,
    made: u32,
}

impl Launcher {
    fn start(
        &mut self,
        vcpus: u32,
        memory_mib: u64,
        whole_machine: bool,
    ) -> Result<(Guest, Waterfall), ModelError> {
        let model = self.model;
        let failed = |doing: &'static str| move |error| ModelError::machinery(model, doing, error);
        self.made += 1;
        let clock = Clock::start();
        let name = format!("cmp-{}-{}", std::process::id(), self.made);
        let name = Name::new(name)
            .map_err(|error| ModelError::machinery(model, "naming a guest", error))?;
        let root = RunRoot::for_user().map_err(failed("finding the run directory"))?;
        let reservation = root
            .reserve(&name)
            .map_err(failed("reserving a guest's name"))?;

        let mut spec = GuestSpec::new(self.images.kernel.clone(), COMMAND_LINE);
        spec.vcpus = u64::from(vcpus).try_into().unwrap_or(spec.vcpus);
        spec.memory = memory_mib.try_into().unwrap_or(spec.memory);
        spec.initrds = vec![self.images.initramfs.clone()];
        let template = self.images.template_name.clone();
        // Without a data disk: what instances write is kept in memory, as it
        // is with `host-vps` here.
        spec.drives = vec![Drive {
            role: DiskRole::Template(template.clone()),
            path: self.images.template.clone(),
        }];
        spec.machine_root = whole_machine.then_some(template);
        spec.ephemeral = true;

        let guest = reservation
            .start(&spec, None)
            .map_err(failed("starting a guest"))?;
        let mut waterfall = Waterfall::new();
        let spans = guest.spans();
        for (span, event) in [
            ("process_start", Event::RuntimeStarted),
            ("first_instruction", Event::KernelEntry),
            ("init", Event::Init),
            ("agent_ready", Event::Ready),
        ] {
            if let Some(at_ns) = spans.get(span) {
                waterfall.set(event, clock.since_start(*at_ns));
            }
        }
        Ok((guest, waterfall))
    }
}

/// A guest's end, nothing of it left.
fn stop(model: ModelId, guest: Guest) -> Result<(), ModelError> {
    let directory = guest.dir().path().to_owned();
    guest
        .stop(PATIENCE)
        .map_err(|error| ModelError::machinery(model, "stopping a guest", error))?;
    if directory.exists() {
        return Err(ModelError::Left {
            model,
            what: directory.display().to_string(),
        });
    }
    Ok(())
}

/// VPSs in one guest.
pub struct GuestVpsModel {
    launcher: Launcher,
    vcpus: u32,
    shared: Option<(Agent, Guest)>,
}

impl GuestVpsModel {
    /// With these images and so many virtual CPUs: the host's.
    pub fn new(images: Images, vcpus: u32) -> Self {
        Self {
            launcher: Launcher {
                model: ModelId::GuestVps,
                images,
                made: 0,
            },
            vcpus: vcpus.clamp(1, 16),
            shared: None,
        }
    }

    fn agent(&mut self) -> Result<&mut Agent, ModelError> {
        let shared = if let Some(shared) = self.shared.take() {
            shared
        } else {
            let (guest, _) = self.launcher.start(self.vcpus, SHARED_MEMORY_MIB, false)?;
            let template = self.launcher.images.template_name.clone();
            (
                Agent::connect(ModelId::GuestVps, guest.endpoint(), template)?,
                guest,
            )
        };
        Ok(&mut self.shared.insert(shared).0)
    }
}

impl Model for GuestVpsModel {
    fn id(&self) -> ModelId {
        ModelId::GuestVps
    }

    fn conditions(&self) -> Conditions {
        Conditions {
            model: ModelId::GuestVps,
            kernel: self.launcher.images.kernel_in_words(),
            limits: super::limits_in_words(&format!(
                "memory, CPU and processes by cgroup; the guest has {} CPUs and \
                 {SHARED_MEMORY_MIB} MiB",
                self.vcpus
            )),
            image: self.launcher.images.in_words(),
            shares: "one guest with its kernel and agent, started afresh for each block; its \
                     start is no part of any figure"
                .into(),
        }
    }

    fn open(&mut self) -> Result<(), ModelError> {
        self.agent().map(drop)
    }

    fn close(&mut self) -> Result<(), ModelError> {
        match self.shared.take() {
            Some((agent, guest)) => {
                drop(agent);
                stop(ModelId::GuestVps, guest)
            }
            None => Ok(()),
        }
    }

    fn launch(&mut self, limits: &InstanceLimits) -> Result<Box<dyn Instance>, ModelError> {
        self.agent()?.launch(limits)
    }

    fn run_once(
        &mut self,
        limits: &InstanceLimits,
        argv: &[&str],
    ) -> Result<Execution, ModelError> {
        self.agent()?.run_once(limits, argv)
    }
}

/// A guest for every instance.
pub struct MicrovmModel {
    launcher: Launcher,
}

impl MicrovmModel {
    /// With these images.
    pub fn new(images: Images) -> Self {
        Self {
            launcher: Launcher {
                model: ModelId::Microvm,
                images,
                made: 0,
            },
        }
    }

    fn guest(&mut self, limits: &InstanceLimits) -> Result<MicrovmInstance, ModelError> {
        let (guest, waterfall) =
            self.launcher
                .start(limits.cpus, limits.memory_bytes >> 20, true)?;
        Ok(MicrovmInstance {
            guest: Some(guest),
            waterfall,
            idle: None,
        })
    }
}

impl Model for MicrovmModel {
    fn id(&self) -> ModelId {
        ModelId::Microvm
    }

    fn conditions(&self) -> Conditions {
        Conditions {
            model: ModelId::Microvm,
            kernel: self.launcher.images.kernel_in_words(),
            limits: super::limits_in_words("as the machine's size"),
            image: self.launcher.images.in_words(),
            shares: "nothing but the host".into(),
        }
    }

    fn open(&mut self) -> Result<(), ModelError> {
        Ok(())
    }

    fn close(&mut self) -> Result<(), ModelError> {
        Ok(())
    }

    fn launch(&mut self, limits: &InstanceLimits) -> Result<Box<dyn Instance>, ModelError> {
        let mut instance = self.guest(limits)?;
        instance.start_idle()?;
        Ok(Box::new(instance))
    }

    fn run_once(
        &mut self,
        limits: &InstanceLimits,
        argv: &[&str],
    ) -> Result<Execution, ModelError> {
        let clock = Clock::start();
        // Without an idle process: its program is the only one.
        let instance = self.guest(limits)?;
        super::run_in(Box::new(instance), clock, argv)
    }
}

/// A guest of its own.
struct MicrovmInstance {
    /// `None` once ended.
    guest: Option<Guest>,
    waterfall: Waterfall,
    /// The connection that keeps the idle process.
    idle: Option<guest_agent::client::Session>,
}

impl MicrovmInstance {
    fn start_idle(&mut self) -> Result<(), ModelError> {
        use guest_agent::client::Client;
        use guest_agent::protocol::{Exec, Message};

        let failed = |error| ModelError::machinery(ModelId::Microvm, "starting a process", error);
        let Some(guest) = &self.guest else {
            return Ok(());
        };
        let mut session = Client::connect(&guest.endpoint())
            .map_err(failed)?
            .exec(Exec {
                target: Target::Machine,
                argv: vec![WORKLOAD.into(), "idle".into()],
                env: Vec::new(),
                cwd: None,
                user: None,
                terminal: None,
            });
        while !matches!(
            session.next(Some(PATIENCE)).map_err(failed)?,
            Message::Stdout(_)
        ) {}
        self.idle = Some(session);
        Ok(())
    }

    fn end(&mut self) -> Result<(), ModelError> {
        self.idle = None;
        self.guest
            .take()
            .map_or(Ok(()), |guest| stop(ModelId::Microvm, guest))
    }
}

impl Instance for MicrovmInstance {
    fn waterfall(&self) -> &Waterfall {
        &self.waterfall
    }

    fn exec(&mut self, argv: &[&str], within: Duration) -> Result<Execution, ModelError> {
        let Some(guest) = &self.guest else {
            return Err(ModelError::Unavailable {
                model: ModelId::Microvm,
                reason: "the guest has ended".into(),
            });
        };
        execute(
            ModelId::Microvm,
            &guest.endpoint(),
            Target::Machine,
            argv,
            within,
        )
    }

    fn usage(&mut self) -> Result<Usage, ModelError> {
        Ok(Usage::default())
    }

    fn host_processes(&self) -> Vec<u32> {
        self.guest
            .as_ref()
            .and_then(Guest::pid)
            .into_iter()
            .collect()
    }

    fn destroy(mut self: Box<Self>) -> Result<(), ModelError> {
        self.end()
    }
}

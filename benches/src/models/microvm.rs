//! `microvm`: a guest for every instance.

use std::time::Duration;

use guest_agent::client::{Client, Session};
use guest_agent::protocol::{Exec, Message, Target};
use vmm::guest::Guest;

use super::burst::at_once;
use super::launcher::{Launcher, stop};
use super::vps::execute;
use super::{
    Clock, Conditions, Execution, Images, Instance, InstanceLimits, Model, ModelError, ModelId,
    PATIENCE, Usage, WORKLOAD,
};
use crate::result::Waterfall;

/// A guest for every instance.
pub struct MicrovmModel {
    launcher: Launcher,
}

impl MicrovmModel {
    /// With these images.
    pub fn new(images: Images) -> Self {
        Self {
            launcher: Launcher::new(ModelId::Microvm, images),
        }
    }

    fn guest(&self, limits: &InstanceLimits) -> Result<MicrovmInstance, ModelError> {
        let (guest, waterfall) =
            self.launcher
                .start(limits.cpus, limits.memory_bytes >> 20, true)?;
        Ok(MicrovmInstance {
            guest: Some(guest),
            waterfall,
            idle: None,
        })
    }

    /// An instance whose guest is restored; it was asked for at `clock`'s start.
    fn restored(&self, clock: Clock) -> Result<MicrovmInstance, ModelError> {
        let (guest, waterfall) = self.launcher.restore(clock)?;
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
            kernel: self.launcher.images().kernel_in_words(),
            limits: super::limits_in_words("as the machine's size"),
            image: self.launcher.images().in_words(),
            shares: "nothing but the host".into(),
        }
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

    fn take_snapshot(&mut self, limits: &InstanceLimits) -> Result<(), ModelError> {
        self.launcher
            .take_snapshot(limits.cpus, limits.memory_bytes >> 20, true)
    }

    fn run_restored(&mut self, _: &InstanceLimits, argv: &[&str]) -> Result<Execution, ModelError> {
        let clock = Clock::start();
        let instance = self.restored(clock)?;
        super::run_in(Box::new(instance), clock, argv)
    }

    fn burst(
        &mut self,
        _: &InstanceLimits,
        argv: &[&str],
        count: u32,
    ) -> Result<Vec<Execution>, ModelError> {
        let clock = Clock::start();
        at_once(
            0..count,
            |_| {
                let mut instance = self.restored(clock)?;
                let execution = super::execute_in(&mut instance, clock, argv)?;
                Ok((instance, execution))
            },
            // All of them are there at once; only then does the first one go.
            |(mut instance, execution)| instance.end().map(|()| execution),
        )
    }
}

/// A guest of its own.
struct MicrovmInstance {
    /// `None` once ended.
    guest: Option<Guest>,
    waterfall: Waterfall,
    /// The connection that keeps the idle process.
    idle: Option<Session>,
}

impl MicrovmInstance {
    fn start_idle(&mut self) -> Result<(), ModelError> {
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

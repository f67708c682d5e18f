//! The models whose instances are VPSs: a kernel with an agent on it, which
//! partitions it. Which kernel, and how it comes up, is the [`Carrier`]'s.

use super::vps::Agent;
use super::{Clock, Conditions, Execution, Instance, InstanceLimits, Model, ModelError, ModelId};
use crate::result::{Event, Waterfall};

/// What carries VPSs: a kernel with an agent.
pub trait Carrier {
    /// It, while it is up.
    type Up;

    /// The model that it makes.
    const MODEL: ModelId;

    /// Under which conditions VPSs run on it.
    fn conditions(&self) -> Conditions;

    /// Brings it up.
    ///
    /// # Errors
    /// It can't be brought up; nothing of it is left then.
    fn bring_up(&mut self) -> Result<(Agent, Self::Up), ModelError>;

    /// Takes the snapshot that it can be restored from; does nothing where
    /// there is one already, or it is no guest.
    ///
    /// # Errors
    /// It could not be taken.
    fn take_snapshot(&mut self) -> Result<(), ModelError> {
        Ok(())
    }

    /// Restores it from its snapshot; when which event of that happened,
    /// since `clock`'s start.
    ///
    /// # Errors
    /// It can't be restored, or is no guest.
    fn restore(&mut self, _clock: Clock) -> Result<(Agent, Self::Up, Waterfall), ModelError> {
        Err(ModelError::Unavailable {
            model: Self::MODEL,
            reason: "it runs in no guest, so that there is nothing to restore".into(),
        })
    }

    /// Ends it; the agent's connections are closed already.
    ///
    /// # Errors
    /// Something of it is left.
    fn take_down(&mut self, up: Self::Up) -> Result<(), ModelError>;
}

/// VPSs on a carrier.
pub struct PartitionedModel<C: Carrier> {
    carrier: C,
    // Dropped in this order: the connection, then what it leads to.
    up: Option<(Agent, C::Up)>,
}

impl<C: Carrier> PartitionedModel<C> {
    pub(super) fn on(carrier: C) -> Self {
        Self { carrier, up: None }
    }

    fn agent(&mut self) -> Result<&mut Agent, ModelError> {
        let up = match self.up.take() {
            Some(up) => up,
            None => self.carrier.bring_up()?,
        };
        Ok(&mut self.up.insert(up).0)
    }
}

impl<C: Carrier> Model for PartitionedModel<C> {
    fn id(&self) -> ModelId {
        C::MODEL
    }

    fn conditions(&self) -> Conditions {
        self.carrier.conditions()
    }

    fn open(&mut self) -> Result<(), ModelError> {
        self.agent().map(drop)
    }

    fn close(&mut self) -> Result<(), ModelError> {
        match self.up.take() {
            Some((agent, up)) => {
                drop(agent);
                self.carrier.take_down(up)
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
        self.agent()?.run_once(limits, argv, Clock::start())
    }

    fn take_snapshot(&mut self, _: &InstanceLimits) -> Result<(), ModelError> {
        self.carrier.take_snapshot()
    }

    fn run_restored(
        &mut self,
        limits: &InstanceLimits,
        argv: &[&str],
    ) -> Result<Execution, ModelError> {
        // Nothing of the model runs when the instance is asked for.
        self.close()?;
        let clock = Clock::start();
        let (mut agent, up, mut waterfall) = self.carrier.restore(clock)?;
        let done = agent.run_once(limits, argv, clock);
        drop(agent);
        self.carrier.take_down(up)?;
        let mut execution = done?;
        waterfall.merge(&execution.waterfall);
        waterfall.set(Event::Returned, clock.elapsed_ns());
        execution.waterfall = waterfall;
        Ok(execution)
    }

    fn burst(
        &mut self,
        limits: &InstanceLimits,
        argv: &[&str],
        count: u32,
    ) -> Result<Vec<Execution>, ModelError> {
        if !C::MODEL.has_snapshots() {
            return self.agent()?.burst(limits, argv, count, Clock::start());
        }
        self.close()?;
        let clock = Clock::start();
        let (mut agent, up, _) = self.carrier.restore(clock)?;
        let done = agent.burst(limits, argv, count, clock);
        drop(agent);
        self.carrier.take_down(up)?;
        done
    }
}

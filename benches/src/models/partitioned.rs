//! The models whose instances are VPSs: a kernel with an agent on it, which
//! partitions it. Which kernel, and how it comes up, is the [`Carrier`]'s.

use super::vps::Agent;
use super::{Conditions, Execution, Instance, InstanceLimits, Model, ModelError, ModelId};

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
        self.agent()?.run_once(limits, argv)
    }
}

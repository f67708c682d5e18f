//! Runs a machine to its end.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use event_manager::{EventManager, MutEventSubscriber, SubscriberId, SubscriberOps};
use guest_agent::protocol::GoodbyeReason;

use super::Machine;
use super::boot_timer::Step;
use super::ending::{Cause, Ending};
use super::error::BuildError;
use super::orders::Orders;
use super::pause::Pause;
use super::processors::{self, Processors};
use super::profiling::{BootProfile, Ticker};
use super::report::Reporter;
use super::signals::EndingSignals;
use super::wake::Wake;
use crate::control::Counts;
use crate::vcpu::{Kick, VcpuFailure};

/// How long we look for a goodbye of a guest that was reset. An agent waits
/// until we have heard it; what is in a queue is found at once.
const GOODBYE_PATIENCE: Duration = Duration::from_millis(20);

type Events = EventManager<Box<dyn MutEventSubscriber>>;

impl Machine {
    /// Runs the machine until it ends, and tells `reporter` of its start.
    /// `attend` is called when the guest runs already: for what others need to
    /// get at it, which it need not wait for.
    ///
    /// # Errors
    /// A [`BuildError`] when the guest could not be started at all.
    pub fn run(
        &mut self,
        reporter: &mut Reporter,
        attend: impl FnOnce(&mut Self),
    ) -> Result<Ending, BuildError> {
        // Before any thread is made: they inherit that these are blocked.
        let signals = EndingSignals::take().map_err(BuildError::process("take over signals"))?;
        Kick::install_handler().map_err(BuildError::process("install a signal handler"))?;
        let boot_profile = self
            .boot_profile
            .take()
            .map(|path: PathBuf| BootProfile::start(path, self.sampler.clone()));
        // The guest's first instruction, or the first since its snapshot.
        let processors = self.start()?;

        self.devices.appear(&self.progress.config)?;
        attend(self);
        let mut events = Events::new().map_err(|error| BuildError::Events(error.to_string()))?;
        let wake = Wake {
            end: self.end.clone(),
            signals,
            agent: self.agent.clone(),
        };
        events.add_subscriber(Box::new(wake));
        if let Some(profiles) = self.profile_server.take() {
            events.add_subscriber(Box::new(profiles));
        }
        let mut orders = None;
        if let Some((server, incoming)) = self.control.take() {
            let taken =
                Orders::new(incoming).map_err(BuildError::process("create an event descriptor"))?;
            events.add_subscriber(Box::new(server));
            events.add_subscriber(Box::new(taken.waker()));
            orders = Some(taken);
        }

        let mut run = Run {
            ready_by: None,
            vsock: None,
            processors: Some(processors),
            pause: None,
            machine: self,
            events,
            boot_profile,
            reporter,
        };
        run.started();
        let cause = run.serve(&mut orders);
        if let Some(orders) = orders {
            orders.settle(&mut run);
        }
        Ok(run.finish(cause))
    }

    fn never_ready(&self) -> Ending {
        let refused = self
            .agent
            .as_ref()
            .and_then(super::agent_link::AgentLink::refused);
        Ending::NeverReady {
            timeout_ms: self
                .ready_timeout
                .map_or(0, crate::config::ReadyTimeout::get),
            refused: refused.map_or_else(String::new, |why| {
                format!("; its last hello was refused: {why}")
            }),
        }
    }

    /// What the cause means: a reset is a power-off if the agent announced it.
    fn ending(&self, cause: Cause, events: &mut Events) -> Ending {
        match cause {
            Cause::Ending(ending) => ending,
            Cause::Vcpu(failure @ VcpuFailure::TripleFault { .. }) => Ending::TripleFault(failure),
            Cause::Reset | Cause::Vcpu(VcpuFailure::Reset { .. }) => self.reset_ending(events),
            Cause::Vcpu(failure) => Ending::Failed(failure.to_string()),
        }
    }

    fn reset_ending(&self, events: &mut Events) -> Ending {
        let Some(agent) = &self.agent else {
            return Ending::Panicked;
        };
        // The goodbye was sent before the reset; it may still be in a queue.
        let patience = Instant::now() + GOODBYE_PATIENCE;
        while agent.is_ready() && agent.goodbye().is_none() && Instant::now() < patience {
            if events.run_with_timeout(1).is_err() {
                break;
            }
        }
        match agent.goodbye() {
            None => Ending::Panicked,
            Some(GoodbyeReason::Requested) => Ending::PowerOff,
            Some(GoodbyeReason::Failed(why)) => Ending::AgentFailed(why),
        }
    }
}

/// For `epoll_wait`: rounded up, so that the time is over when it returns.
fn milliseconds(left: Option<Duration>) -> i32 {
    left.map_or(-1, |left| {
        i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
    })
}

/// A machine that runs, or stands still.
pub(super) struct Run<'a> {
    pub(super) machine: &'a mut Machine,
    events: Events,
    /// The vsock device in the event loop, while the machine runs.
    vsock: Option<SubscriberId>,
    /// The processors, while the machine runs.
    processors: Option<Processors>,
    /// What it goes on from, while it is paused.
    pause: Option<Pause>,
    /// When the guest has to be ready, while it is not.
    ready_by: Option<Instant>,
    boot_profile: Option<BootProfile>,
    reporter: &'a mut Reporter,
}

impl Run<'_> {
    /// The guest runs.
    fn started(&mut self) {
        self.watch_vsock();
        self.ready_by = self
            .machine
            .agent
            .as_ref()
            .and(self.machine.ready_timeout)
            .map(|timeout| Instant::now() + Duration::from_millis(u64::from(timeout.get())));
        self.report();
        if self.ready_by.is_none() {
            // There is no telling when its boot is over. Its processor's thread
            // may not have got to its first instruction.
            self.machine.timer.stamp(Step::FirstInstruction);
            self.ready();
        }
    }

    /// Serves events until there is a reason to end.
    fn serve(&mut self, orders: &mut Option<Orders>) -> Cause {
        let mut ticker = Ticker::new(self.machine.sampler.clone());
        loop {
            if let Some(cause) = self.machine.end.take() {
                return cause;
            }
            if let Some(agent) = &self.machine.agent {
                if let Some(reason) = agent.incompatible() {
                    return Cause::Ending(Ending::BadHello(reason));
                }
                if self.ready_by.is_some() && agent.is_ready() {
                    self.ready_by = None;
                    self.ready();
                }
            }
            if let Some(orders) = orders
                && let Err(error) = orders.perform(self)
            {
                let failed = format!("the guest cannot go on: {error}");
                return Cause::Ending(Ending::Failed(failed));
            }
            // To a guest that stands still no time passes.
            let deadline = self.ready_by.filter(|_| self.pause.is_none());
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Cause::Ending(self.machine.never_ready());
            }
            if let Some(processors) = &self.processors
                && ticker.is_due()
            {
                processors.kick();
            }
            let timeout = milliseconds(ticker.bound(left));
            if let Err(error) = self.events.run_with_timeout(timeout) {
                let failed = format!("cannot wait for events: {error}");
                return Cause::Ending(Ending::Failed(failed));
            }
        }
    }

    fn ready(&mut self) {
        if let Some(profile) = self.boot_profile.take() {
            profile.finish();
        }
        if let Some(pvm) = &self.machine.pvm
            && let Err(error) = pvm.boot_is_over(&self.machine.vm)
        {
            eprintln!("insula-vmm: the guest's timer goes on by way of this process: {error}");
        }
        self.reporter.ready(self.machine.timer.spans());
        self.machine.learn_working_set();
    }

    /// Whether the machine is paused.
    pub(super) fn is_paused(&self) -> bool {
        self.pause.is_some()
    }

    /// Stops the machine where it is, if it runs.
    ///
    /// # Errors
    /// KVM refuses; the machine stands still and cannot go on.
    pub(super) fn pause(&mut self) -> Result<(), BuildError> {
        let Some(processors) = self.processors.take() else {
            return Ok(());
        };
        if let Some(id) = self.vsock.take()
            && let Ok(vsock) = self.events.remove_subscriber(id)
        {
            self.machine.vsock_subscriber = Some(vsock);
        }
        self.pause = Some(self.machine.pause(processors)?);
        Ok(())
    }

    /// Lets the machine go on, if it stands still; returns for how long it did.
    ///
    /// # Errors
    /// The host refuses something; the machine cannot go on.
    pub(super) fn resume(&mut self) -> Result<Duration, BuildError> {
        let Some(pause) = self.pause.take() else {
            return Ok(Duration::ZERO);
        };
        self.machine.restore_clocks(&pause)?;
        let duration = pause.duration();
        self.ready_by = self.ready_by.map(|deadline| deadline + duration);
        self.watch_vsock();
        // Before the guest runs, which then hears it as early as can be.
        self.machine.tell_time();
        self.processors = Some(self.machine.start()?);
        Ok(duration)
    }

    /// Says in `status.json` how the machine is.
    pub(super) fn report(&self) {
        let spans = self.machine.timer.spans();
        match (self.is_paused(), self.ready_by) {
            (true, _) => self.reporter.paused(spans),
            (false, Some(_)) => self.reporter.booting(spans),
            (false, None) => self.reporter.running(spans),
        }
    }

    /// What has been counted of the machine.
    pub(super) fn counts(&self) -> Counts {
        let processors = match &self.processors {
            Some(processors) => processors.counts(),
            None => processors::counts(&processors::statistics(&self.machine.vcpus)),
        };
        Counts {
            processors,
            repairs: self.machine.pvm.as_ref().map(|pvm| pvm.counts().read()),
        }
    }

    fn watch_vsock(&mut self) {
        if let Some(vsock) = self.machine.vsock_subscriber.take() {
            self.vsock = Some(self.events.add_subscriber(vsock));
        }
    }

    fn finish(mut self, cause: Cause) -> Ending {
        if let Some(profile) = self.boot_profile.take() {
            profile.finish();
        }
        let ending = self.machine.ending(cause, &mut self.events);
        self.machine.end.stop().set();
        if let Some(processors) = self.processors.take() {
            processors.stop();
        }
        for slot in &self.machine.devices.virtio {
            slot.transport().reset();
        }
        self.machine.devices.console.write_out();
        ending
    }
}

//! Runs a machine to its end.

use std::sync::{Arc, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use guest_agent::protocol::GoodbyeReason;

use super::Machine;
use super::boot_timer::Step;
use super::ending::{Cause, EndSignal, Ending};
use super::error::BuildError;
use super::profiling::{BootProfile, Ticker};
use super::report::Reporter;
use super::signals::EndingSignals;
use super::wake::Wake;
use crate::vcpu::{Buses, Kick, NoRepair, Sampler, Vcpu, VcpuFailure};

/// Stack of a processor's thread. It only dispatches to devices.
const VCPU_STACK: usize = 128 << 10;

/// How long we look for a goodbye of a guest that was reset. An agent waits
/// until we have heard it; what is in a queue is found at once.
const GOODBYE_PATIENCE: Duration = Duration::from_millis(20);

impl Machine {
    /// Runs the machine until it ends, and tells `reporter` of its start.
    ///
    /// # Errors
    /// A [`BuildError`] when the guest could not be started at all.
    pub fn run(&mut self, reporter: &mut Reporter) -> Result<Ending, BuildError> {
        let signals = EndingSignals::take().map_err(BuildError::process("take over signals"))?;
        let mut events = EventManager::<Box<dyn MutEventSubscriber>>::new()
            .map_err(|error| BuildError::Events(error.to_string()))?;
        let wake = Wake {
            end: self.end.clone(),
            signals,
            agent: self.agent.clone(),
        };
        events.add_subscriber(Box::new(wake));
        if let Some(vsock) = self.devices.vsock.take() {
            events.add_subscriber(Box::new(vsock));
        }
        if let Some(profiles) = self.profile_server.take() {
            events.add_subscriber(Box::new(profiles));
        }

        let mut boot_profile = self
            .boot_profile
            .take()
            .map(|path| BootProfile::start(path, self.sampler.clone()));
        let processors = self.start_processors()?;
        reporter.booting(self.timer.spans());
        let cause = self.wait(&mut events, &processors, &mut boot_profile, reporter);
        if let Some(profile) = boot_profile {
            profile.finish();
        }
        let ending = self.ending(cause, &mut events);

        self.end.stop().set();
        processors.stop();
        for transport in &self.devices.virtio {
            transport
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .reset();
        }
        self.devices.console.write_out();
        Ok(ending)
    }

    fn start_processors(&mut self) -> Result<Processors, BuildError> {
        Kick::install_handler().map_err(BuildError::process("install a signal handler"))?;
        let mut processors = Processors {
            end: self.end.clone(),
            sampler: self.sampler.clone(),
            threads: Vec::new(),
        };
        let buses = Arc::new(std::mem::take(&mut self.devices.buses));
        self.timer.stamp(Step::FirstInstruction);
        for vcpu in self.vcpus.drain(..) {
            processors.start(vcpu, Arc::clone(&buses))?;
        }
        Ok(processors)
    }

    /// Serves events until there is a reason to end.
    fn wait(
        &self,
        events: &mut EventManager<Box<dyn MutEventSubscriber>>,
        processors: &Processors,
        boot_profile: &mut Option<BootProfile>,
        reporter: &mut Reporter,
    ) -> Cause {
        let mut deadline = self
            .agent
            .as_ref()
            .and(self.ready_timeout)
            .map(|timeout| Instant::now() + Duration::from_millis(u64::from(timeout.get())));
        if deadline.is_none() {
            // There is no telling when its boot is over.
            reporter.ready(self.timer.spans());
        }
        let mut ticker = Ticker::new(self.sampler.clone());
        loop {
            if let Some(cause) = self.end.take() {
                return cause;
            }
            if let Some(agent) = &self.agent {
                if let Some(reason) = agent.incompatible() {
                    return Cause::Ending(Ending::BadHello(reason));
                }
                if deadline.is_some() && agent.is_ready() {
                    deadline = None;
                    if let Some(profile) = boot_profile.take() {
                        profile.finish();
                    }
                    reporter.ready(self.timer.spans());
                }
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Cause::Ending(self.never_ready());
            }
            if ticker.is_due() {
                processors.kick();
            }
            if let Err(error) = events.run_with_timeout(milliseconds(ticker.bound(left))) {
                let failed = format!("cannot wait for events: {error}");
                return Cause::Ending(Ending::Failed(failed));
            }
        }
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
    fn ending(
        &self,
        cause: Cause,
        events: &mut EventManager<Box<dyn MutEventSubscriber>>,
    ) -> Ending {
        match cause {
            Cause::Ending(ending) => ending,
            Cause::Vcpu(failure @ VcpuFailure::TripleFault { .. }) => Ending::TripleFault(failure),
            Cause::Reset | Cause::Vcpu(VcpuFailure::Reset { .. }) => self.reset_ending(events),
            Cause::Vcpu(failure) => Ending::Failed(failure.to_string()),
        }
    }

    fn reset_ending(&self, events: &mut EventManager<Box<dyn MutEventSubscriber>>) -> Ending {
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

/// The threads that run processors.
struct Processors {
    end: EndSignal,
    sampler: Sampler,
    threads: Vec<(JoinHandle<Vcpu>, Kick)>,
}

impl Processors {
    fn start(&mut self, mut vcpu: Vcpu, buses: Arc<Buses>) -> Result<(), BuildError> {
        let kick = Kick::new(&mut vcpu);
        let end = self.end.clone();
        let sampler = self.sampler.clone();
        let run = move || {
            if let Err(failure) = vcpu.run(&buses, end.stop(), &sampler, &mut NoRepair) {
                end.raise(Cause::Vcpu(failure));
            }
            // Given back, so that its mapping lives until nobody kicks it.
            vcpu
        };
        let thread =
            Builder::new()
                .stack_size(VCPU_STACK)
                .spawn(run)
                .map_err(BuildError::process(
                    "start a thread for a virtual processor",
                ))?;
        self.threads.push((thread, kick));
        Ok(())
    }

    /// Gets all of them out of guest mode for a moment.
    fn kick(&self) {
        for (thread, kick) in &self.threads {
            kick.kick(thread);
        }
    }

    /// Ends all of them, wherever they are.
    fn stop(mut self) {
        self.kick_and_join();
    }

    fn kick_and_join(&mut self) {
        self.end.stop().set();
        self.kick();
        for (thread, _) in self.threads.drain(..) {
            // A thread that panicked has said so on standard error.
            drop(thread.join());
        }
    }
}

impl Drop for Processors {
    fn drop(&mut self) {
        self.kick_and_join();
    }
}

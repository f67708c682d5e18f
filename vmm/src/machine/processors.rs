//! The threads that run a machine's processors.

use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use super::boot_timer::{BootTimer, Step};
use super::ending::{Cause, EndSignal, Ending};
use super::error::BuildError;
use crate::vcpu::{Buses, ExitRepair, Kick, ProcessorCounts, Sampler, Statistics, Vcpu};

/// Stack of a processor's thread. It only dispatches to devices.
const VCPU_STACK: usize = 128 << 10;

/// What the names of processors' threads begin with; the number follows.
pub const THREAD_NAME: &str = "vcpu";

/// The threads that run processors. Dropping it ends the machine.
pub(super) struct Processors {
    end: EndSignal,
    threads: Vec<(JoinHandle<Vcpu>, Kick)>,
    statistics: Vec<Statistics>,
}

/// What KVM counts of processors. One that does not count is left out.
pub(super) fn statistics(vcpus: &[Vcpu]) -> Vec<Statistics> {
    vcpus
        .iter()
        .filter_map(|vcpu| Statistics::open(vcpu).ok())
        .collect()
}

/// The counts of all of them now.
pub(super) fn counts(statistics: &[Statistics]) -> ProcessorCounts {
    statistics
        .iter()
        .map(Statistics::read)
        .fold(ProcessorCounts::default(), ProcessorCounts::plus)
}

impl Processors {
    /// Runs `vcpus`, each in a thread of its own, in their order, and each with
    /// what `repair` makes for it.
    ///
    /// # Errors
    /// A thread cannot be made; the others have ended then.
    pub(super) fn start(
        vcpus: Vec<Vcpu>,
        buses: &Arc<Buses>,
        end: &EndSignal,
        sampler: &Sampler,
        timer: &Arc<BootTimer>,
        repair: impl Fn() -> Box<dyn ExitRepair>,
    ) -> Result<Self, BuildError> {
        let mut processors = Self {
            end: end.clone(),
            threads: Vec::with_capacity(vcpus.len()),
            statistics: statistics(&vcpus),
        };
        for vcpu in vcpus {
            processors.spawn(
                vcpu,
                Arc::clone(buses),
                sampler.clone(),
                Arc::clone(timer),
                repair(),
            )?;
        }
        Ok(processors)
    }

    fn spawn(
        &mut self,
        mut vcpu: Vcpu,
        buses: Arc<Buses>,
        sampler: Sampler,
        timer: Arc<BootTimer>,
        mut repair: Box<dyn ExitRepair>,
    ) -> Result<(), BuildError> {
        let kick = Kick::new(&mut vcpu);
        let id = vcpu.id();
        let end = self.end.clone();
        let run = move || {
            timer.stamp(Step::FirstInstruction);
            if let Err(failure) = vcpu.run(&buses, end.stop(), &sampler, repair.as_mut()) {
                end.raise(Cause::Vcpu(failure));
            }
            // Given back, so that its mapping lives until nobody kicks it, and
            // for whoever pauses the machine.
            vcpu
        };
        let thread = Builder::new()
            .name(format!("{THREAD_NAME}{id}"))
            .stack_size(VCPU_STACK)
            .spawn(run)
            .map_err(BuildError::process(
                "start a thread for a virtual processor",
            ))?;
        self.threads.push((thread, kick));
        Ok(())
    }

    /// What has happened on them.
    pub(super) fn counts(&self) -> ProcessorCounts {
        counts(&self.statistics)
    }

    /// Gets all of them out of guest mode for a moment.
    pub(super) fn kick(&self) {
        for (thread, kick) in &self.threads {
            kick.kick(thread);
        }
    }

    /// Stops all of them where their state is whole, and gives them back.
    ///
    /// A processor whose thread panicked is lost, and the machine ends.
    pub(super) fn pause(mut self) -> Vec<Vcpu> {
        self.end.stop().pause();
        self.kick_and_join()
    }

    /// Ends all of them, wherever they are.
    pub(super) fn stop(mut self) {
        self.end.stop().set();
        self.kick_and_join();
    }

    fn kick_and_join(&mut self) -> Vec<Vcpu> {
        self.kick();
        let mut vcpus = Vec::with_capacity(self.threads.len());
        for (thread, _) in self.threads.drain(..) {
            match thread.join() {
                Ok(vcpu) => vcpus.push(vcpu),
                // It has said why on standard error.
                Err(_) => self.end.raise(Cause::Ending(Ending::Failed(
                    "a virtual processor's thread panicked".to_owned(),
                ))),
            }
        }
        vcpus
    }
}

impl Drop for Processors {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.end.stop().set();
            self.kick_and_join();
        }
    }
}

//! A machine that stands still: its processors are between two instructions,
//! its devices between two requests.

use std::time::{Duration, Instant};

use super::Machine;
use super::error::BuildError;
use super::processors::Processors;
use crate::kvm::{KvmError, refused};
use crate::vcpu::{ExitRepair, NoRepair, Vcpu};
use kvm_bindings::kvm_clock_data;

/// What the guest's clocks showed when it was paused.
#[derive(Debug)]
pub(super) struct Pause {
    since: Instant,
    clock: kvm_clock_data,
    /// The time stamp counters of the processors, in their order.
    counters: Vec<u64>,
}

impl Pause {
    /// How long it lasts.
    pub(super) fn duration(&self) -> Duration {
        self.since.elapsed()
    }
}

impl Machine {
    /// Stops processors and devices, with all that they were at done. The
    /// event loop may no longer drive the vsock device.
    pub(super) fn pause(&mut self, processors: Processors) -> Result<Pause, KvmError> {
        let since = Instant::now();
        self.vcpus = processors.pause();
        self.pause_devices();
        Ok(Pause {
            since,
            clock: self.vm.get_clock().map_err(refused("read the clock"))?,
            counters: self
                .vcpus
                .iter()
                .map(Vcpu::time_stamp_counter)
                .collect::<Result<_, _>>()?,
        })
    }

    /// Has the devices leave their queues alone.
    pub(super) fn pause_devices(&self) {
        for slot in &self.devices.virtio {
            slot.transport().pause();
        }
    }

    /// Lets the guest's clocks go on from where they stood: to the guest, no
    /// time has passed.
    pub(super) fn restore_clocks(&self, pause: &Pause) -> Result<(), KvmError> {
        self.restore_counters(&pause.counters)?;
        // Without the flags, which say how it was read.
        let clock = kvm_clock_data {
            clock: pause.clock.clock,
            ..kvm_clock_data::default()
        };
        self.vm
            .set_clock(&clock)
            .map_err(refused("set the clock"))?;
        for vcpu in &self.vcpus {
            vcpu.tell_of_pause();
        }
        Ok(())
    }

    /// Lets the time stamp counters go on from what they showed. They are set
    /// back by the same amount, so that they stay in step.
    fn restore_counters(&self, shown: &[u64]) -> Result<(), KvmError> {
        let (Some(first), Some(before)) = (self.vcpus.first(), shown.first()) else {
            return Ok(());
        };
        let passed = first.time_stamp_counter()?.wrapping_sub(*before);
        for (vcpu, counter) in self.vcpus.iter().zip(shown) {
            // On a PVM host the guest reads the host's counter.
            if self.pvm.is_some() || !vcpu.set_back_time_stamp_counter(passed)? {
                vcpu.set_time_stamp_counter(*counter)?;
            }
        }
        Ok(())
    }

    /// Tells the agent what time it is: the guest's wall clock stood still, too.
    /// A guest without an agent has to find out otherwise.
    pub(super) fn tell_time(&self) {
        if let (Some(agent), Some(vsock)) = (&self.agent, &self.devices.vsock_handle)
            && let Some((line, bytes)) = agent.tell_time()
        {
            // If the call has ended meanwhile, the agent makes another one.
            vsock.send(line, &bytes);
        }
    }

    /// Starts devices and processors. Every queue is looked at, so that no
    /// notification of before or during a pause is lost.
    ///
    /// # Errors
    /// A thread cannot be made.
    pub(super) fn start(&mut self) -> Result<Processors, BuildError> {
        self.end.stop().resume();
        let vcpus = std::mem::take(&mut self.vcpus);
        let repair = || match &self.pvm {
            None => Box::new(NoRepair) as Box<dyn ExitRepair>,
            Some(pvm) => pvm.repair(&self.memory),
        };
        let processors = Processors::start(
            vcpus,
            &self.buses,
            &self.end,
            &self.sampler,
            &self.timer,
            repair,
        )?;
        // On a host with one processor, the guest goes first.
        std::thread::yield_now();
        // After the processors: until then a device answers but leaves what the
        // guest gives it in its queues, where it looks first of all.
        for slot in &self.devices.virtio {
            slot.transport().resume()?;
        }
        Ok(processors)
    }
}

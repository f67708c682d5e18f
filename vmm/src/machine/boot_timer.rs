//! The boot timer: when a machine reached each step of its start, all on the
//! host's monotonic clock.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Steps of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The machine process was about to be spawned, or started where its
    /// starter did not say.
    ProcessStart,
    /// KVM is open and the virtual machine exists.
    KvmReady,
    /// The guest's memory is there.
    MemoryReady,
    /// Kernel and initramfs are in it.
    KernelLoaded,
    /// Everything is built; the first processor is about to run.
    FirstInstruction,
    /// PID 1 dialled the host, before it did anything else.
    Init,
    /// The agent said hello.
    AgentReady,
}

/// When each step was reached, in nanoseconds of `CLOCK_MONOTONIC`; `None`
/// where it was not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spans {
    /// The machine process was about to be spawned, or started where its
    /// starter did not say.
    pub process_start: Option<u64>,
    /// KVM is open and the virtual machine exists.
    pub kvm_ready: Option<u64>,
    /// The guest's memory is there.
    pub memory_ready: Option<u64>,
    /// Kernel and initramfs are in it.
    pub kernel_loaded: Option<u64>,
    /// Everything is built; the first processor is about to run.
    pub first_instruction: Option<u64>,
    /// PID 1 dialled the host, before it did anything else.
    pub init: Option<u64>,
    /// The agent said hello.
    pub agent_ready: Option<u64>,
}

/// Takes the time of each step once. Any thread may stamp.
#[derive(Debug, Default)]
pub struct BootTimer([AtomicU64; 7]);

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub fn now_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // By the C library, which found the kernel's function for it when it
    // started: anybody else has to look for that first, as long as a hundredth
    // of a restore.
    // SAFETY: `now` can be written to, and every Linux has this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl BootTimer {
    /// A timer of a process that started at `process_start_ns`.
    pub fn new(process_start_ns: u64) -> Self {
        let timer = Self::default();
        timer.set(Step::ProcessStart, process_start_ns);
        timer
    }

    /// The step is reached now. Only the first time counts.
    pub fn stamp(&self, step: Step) {
        self.set(step, now_ns());
    }

    fn set(&self, step: Step, ns: u64) {
        let slot = &self.0[step as usize];
        // 0 is "not reached"; a failed exchange is a step that was reached before.
        let _ = slot.compare_exchange(0, ns.max(1), Ordering::AcqRel, Ordering::Acquire);
    }

    /// What was reached so far.
    pub fn spans(&self) -> Spans {
        let at = |step: Step| match self.0[step as usize].load(Ordering::Acquire) {
            0 => None,
            ns => Some(ns),
        };
        Spans {
            process_start: at(Step::ProcessStart),
            kvm_ready: at(Step::KvmReady),
            memory_ready: at(Step::MemoryReady),
            kernel_loaded: at(Step::KernelLoaded),
            first_instruction: at(Step::FirstInstruction),
            init: at(Step::Init),
            agent_ready: at(Step::AgentReady),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_keeps_its_first_time() {
        let timer = BootTimer::new(5);
        timer.stamp(Step::Init);
        let first = timer.spans().init.unwrap();
        timer.stamp(Step::Init);
        let spans = timer.spans();
        assert_eq!(spans.init, Some(first));
        assert_eq!(spans.process_start, Some(5));
        assert_eq!(spans.agent_ready, None);
    }
}

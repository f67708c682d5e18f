//! Isolation models, driven through one trait.
//!
//! A [`Model`] launches [`Instance`]s: an instance is the template with one
//! idle process in it, ready for more. What the instances of a model share (a
//! guest, an agent) is [opened](Model::open) afresh for every block, because
//! that is the level at which results vary.

mod burst;
mod clock;
mod error;
mod guest_vps;
mod host_vps;
mod id;
mod launcher;
mod microvm;
mod partitioned;
mod process;
mod template;
mod vps;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use clock::Clock;
pub use error::ModelError;
pub use guest_vps::GuestVpsModel;
pub use host_vps::HostVpsModel;
pub use id::ModelId;
pub use microvm::MicrovmModel;
pub use process::ProcessModel;
pub use template::Images;

use crate::result::Waterfall;

/// The program that every template of the comparison has.
pub const WORKLOAD: &str = "insula-workload";
/// How long anything but a workload may take, emulated hosts included.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The host's kernel, in words.
fn host_kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("the host's, {}", release.trim())
}

/// The limits of an instance in words.
fn limits_in_words(how: &str) -> String {
    let limits = InstanceLimits::default();
    format!(
        "{} MiB, {} CPU, {} processes: {how}",
        limits.memory_bytes >> 20,
        limits.cpus,
        limits.pids
    )
}

/// Limits of an instance, the same for every model that has limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceLimits {
    /// Memory, in bytes: of a microVM the machine's, of a VPS its cgroup's.
    pub memory_bytes: u64,
    /// CPUs.
    pub cpus: u32,
    /// Processes, of a VPS.
    pub pids: u32,
}

impl Default for InstanceLimits {
    fn default() -> Self {
        Self {
            memory_bytes: 128 << 20,
            cpus: 1,
            pids: 512,
        }
    }
}

/// Under which conditions a model runs: what is equal, and what is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conditions {
    /// The model.
    pub model: ModelId,
    /// The kernel that serves its system calls.
    pub kernel: String,
    /// Its limits, in words.
    pub limits: String,
    /// Its root file system.
    pub image: String,
    /// What its instances share.
    pub shares: String,
}

/// What ran, and when the host learned of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Execution {
    /// The exit code as a shell would report it.
    pub exit_code: u8,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// First byte and exit, from the request to execute on; T1 is when the
    /// process was started, where that is seen.
    pub waterfall: Waterfall,
}

/// What an instance uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Charged to its cgroups (a VPS's; of a microVM the machine process's own
    /// memory is counted by [`Instance::host_processes`] instead), in bytes.
    pub cgroup_bytes: Option<u64>,
    /// CPU time, in microseconds.
    pub cpu_us: Option<u64>,
}

/// An isolation model.
pub trait Model {
    /// Which one.
    fn id(&self) -> ModelId;

    /// Under which conditions it runs.
    fn conditions(&self) -> Conditions;

    /// Brings up what its instances share, if they share anything of the
    /// model's. Does nothing when it is up.
    ///
    /// # Errors
    /// It can't be brought up.
    fn open(&mut self) -> Result<(), ModelError> {
        Ok(())
    }

    /// Ends what its instances share. Does nothing when it is not up.
    ///
    /// # Errors
    /// Something could not be ended.
    fn close(&mut self) -> Result<(), ModelError> {
        Ok(())
    }

    /// Launches an instance of the `bench` template.
    ///
    /// # Errors
    /// It could not be launched; nothing of it is left then.
    fn launch(&mut self, limits: &InstanceLimits) -> Result<Box<dyn Instance>, ModelError>;

    /// An instance for one program: launches it, runs `argv`, destroys it.
    /// T0 is the call. The general way is an instance in which `argv` is
    /// executed; models with a cheaper way of their own use that.
    ///
    /// # Errors
    /// It could not be launched, or not be destroyed.
    fn run_once(
        &mut self,
        limits: &InstanceLimits,
        argv: &[&str],
    ) -> Result<Execution, ModelError> {
        let clock = Clock::start();
        let instance = self.launch(limits)?;
        run_in(instance, clock, argv)
    }

    /// Takes the snapshot that guests of restored instances come from. Does
    /// nothing when there is one, or the model has no guests.
    ///
    /// # Errors
    /// It could not be taken.
    fn take_snapshot(&mut self, _limits: &InstanceLimits) -> Result<(), ModelError> {
        Ok(())
    }

    /// As [`Model::run_once`], with nothing of the instance running before: the
    /// guest that carries it is restored from the snapshot.
    ///
    /// # Errors
    /// As [`Model::run_once`]; and the model has no guests.
    fn run_restored(
        &mut self,
        _limits: &InstanceLimits,
        _argv: &[&str],
    ) -> Result<Execution, ModelError> {
        Err(ModelError::Unavailable {
            model: self.id(),
            reason: "it runs in no guest, so that there is nothing to restore".into(),
        })
    }

    /// `count` instances at once, each for one program. T0 of all of them is
    /// the call; the guests of models that have some are restored from the
    /// snapshot. When this returns, everything that they took is returned.
    ///
    /// # Errors
    /// One of them could not be launched or not be destroyed.
    fn burst(
        &mut self,
        limits: &InstanceLimits,
        argv: &[&str],
        count: u32,
    ) -> Result<Vec<Execution>, ModelError>;
}

/// Runs one program in an instance that was asked for at `clock`'s start.
fn execute_in(
    instance: &mut dyn Instance,
    clock: Clock,
    argv: &[&str],
) -> Result<Execution, ModelError> {
    let mut waterfall = *instance.waterfall();
    let asked = clock.elapsed_ns();
    let mut execution = instance.exec(argv, PATIENCE)?;
    waterfall.merge(&execution.waterfall.after_launch(asked));
    execution.waterfall = waterfall;
    Ok(execution)
}

/// The same, and destroys the instance.
fn run_in(
    mut instance: Box<dyn Instance>,
    clock: Clock,
    argv: &[&str],
) -> Result<Execution, ModelError> {
    let executed = execute_in(&mut *instance, clock, argv);
    instance.destroy()?;
    let mut execution = executed?;
    let returned = clock.elapsed_ns();
    execution
        .waterfall
        .set(crate::result::Event::Returned, returned);
    Ok(execution)
}

/// A running instance.
///
/// Dropped without being destroyed, it is destroyed as well as can be.
pub trait Instance {
    /// The events of its launch, from the request on.
    fn waterfall(&self) -> &Waterfall;

    /// Executes a program of the template and waits for its end.
    ///
    /// # Errors
    /// It could not be executed, or did not end in time. (A program that ran
    /// and failed is not an error.)
    fn exec(&mut self, argv: &[&str], within: Duration) -> Result<Execution, ModelError>;

    /// What it uses.
    ///
    /// # Errors
    /// It could not be asked.
    fn usage(&mut self) -> Result<Usage, ModelError>;

    /// The host's processes that carry it and nothing else.
    fn host_processes(&self) -> Vec<u32>;

    /// Ends it; when this returns, everything that it took is returned.
    ///
    /// # Errors
    /// Something of it is left.
    fn destroy(self: Box<Self>) -> Result<(), ModelError>;
}

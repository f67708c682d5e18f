//! Makes a machine from a snapshot: the same requests to KVM as for a boot, but
//! nothing is loaded, and its memory comes from a file.

use std::sync::Arc;

use guest_agent::protocol::{Name, Restored};
use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::Machine;
use super::agent_link::AgentLink;
use super::boot_timer::{BootTimer, Step};
use super::build::{Parts, create_vm};
use super::device_states::KNOWN;
use super::devices::Devices;
use super::ending::EndSignal;
use super::error::BuildError;
use super::take::Progress;
use crate::config::{BootNonce, HugePages, MachineConfig};
use crate::kvm;
use crate::memory::{self, PAGE_SIZE, RestoreMode};
use crate::snapshot::{Snapshot, working_set};
use crate::vcpu::{StateSupport, Vcpu};

/// How a machine is restored.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The guest's host name.
    pub hostname: Name,
    /// Load the pages that a guest of this snapshot needs first; if they are
    /// not known, find them out.
    pub prefetch: bool,
    /// Accept another processor model where that can be safe.
    pub force: bool,
    /// The snapshot may be removed while the machine runs: no later one is a
    /// change of it.
    pub passing: bool,
}

impl Machine {
    /// Makes the machine that was saved, as another one: with the files,
    /// sockets, context identifier and nonce of `config`. Nothing of the guest
    /// has run yet when this returns.
    ///
    /// # Errors
    /// A [`BuildError`], which says what does not fit.
    pub fn restore(
        config: &MachineConfig,
        snapshot: &Snapshot,
        options: &RestoreOptions,
        timer: Arc<BootTimer>,
    ) -> Result<Self, BuildError> {
        let state = snapshot.state();
        state.check_devices(&KNOWN)?;
        if config.machine.mem_size_mib.bytes() != state.memory.content.size
            || usize::from(config.machine.vcpu_count.get()) != state.vcpus.len()
        {
            return Err(BuildError::OtherMachine);
        }
        let kvm = kvm::open_expecting_all()?;
        snapshot.check_host(&kvm, options.force)?;
        let (vm, pvm) = create_vm(&kvm, config)?;
        timer.stamp(Step::KvmReady);

        let mode = match config.machine.huge_pages {
            HugePages::None => RestoreMode::OnDemand,
            HugePages::Transparent => RestoreMode::HugePages,
        };
        let (memory, backing) = snapshot.restore_memory(mode)?;
        let mut learn = None;
        if options.prefetch && mode == RestoreMode::OnDemand {
            let pages = memory.iter().map(GuestMemoryRegion::len).sum::<u64>() / PAGE_SIZE;
            match working_set(snapshot.dir(), pages) {
                Some(pages) => memory::prefetch(&memory, &pages),
                None => learn = Some(snapshot.dir().to_owned()),
            }
        }
        memory::register(&vm, &memory)?;
        timer.stamp(Step::MemoryReady);

        let end = EndSignal::new().map_err(BuildError::process("create an event descriptor"))?;
        let mut devices = Devices::new(&vm, &end)?;
        let agent = agent_link(config, snapshot, options, &timer)?;
        devices.add_drives(&vm, &memory, config)?;
        if let Some(vsock) = &config.vsock {
            devices.add_vsock(&vm, &memory, vsock, agent.clone())?;
        }

        let support = StateSupport::new(&vm);
        let mut cpuid = state.cpuid().map_err(BuildError::Cpuid)?;
        let vcpus = state
            .vcpus
            .iter()
            .map(|vcpu| Vcpu::restore(&vm, vcpu, &mut cpuid, &support, options.force))
            .collect::<Result<Vec<_>, _>>()?;
        state.vm.restore(&vm)?;
        devices.restore(&state.devices)?;
        for vcpu in &vcpus {
            vcpu.tell_of_pause();
        }
        timer.stamp(Step::KernelLoaded);

        let mut progress = Progress::new(config.clone());
        progress.backing = backing;
        // Memory in huge pages is not the file's in the first place.
        progress.origin =
            (mode == RestoreMode::OnDemand && !options.passing).then(|| snapshot.dir().to_owned());
        progress.learn_working_set = learn;
        Ok(Self::assemble(
            Parts {
                vcpus,
                devices,
                end,
                agent,
                timer,
                pvm,
                vm,
                kvm,
                memory,
            },
            progress,
        ))
    }
}

/// The configuration that the machine had when it was saved.
///
/// # Errors
/// [`BuildError::SavedConfig`].
pub fn saved_config(snapshot: &Snapshot) -> Result<MachineConfig, BuildError> {
    serde_json::from_str(&snapshot.state().config).map_err(|source| BuildError::SavedConfig {
        path: snapshot.dir().to_owned(),
        source,
    })
}

/// What tells the agent that its guest is another one now.
fn agent_link(
    config: &MachineConfig,
    snapshot: &Snapshot,
    options: &RestoreOptions,
    timer: &Arc<BootTimer>,
) -> Result<Option<AgentLink>, BuildError> {
    let (Some(_), Some(readiness)) = (&config.vsock, &config.readiness) else {
        return Ok(None);
    };
    let before = match snapshot.state().nonce {
        Some(nonce) => BootNonce::new(nonce),
        None => match saved_config(snapshot)?.readiness {
            Some(readiness) => readiness.boot_nonce,
            None => return Ok(None),
        },
    };
    let mut random = [0; 16 + 64];
    // So few bytes come whole (getrandom(2)).
    getrandom(&mut random, GetRandomFlags::empty())
        .map_err(std::io::Error::from)
        .map_err(BuildError::process("get random numbers"))?;
    let (mut generation, mut entropy) = ([0; 16], [0; 64]);
    generation.copy_from_slice(&random[..16]);
    entropy.copy_from_slice(&random[16..]);
    let nonce: BootNonce = readiness.boot_nonce;
    let restored = Restored {
        generation,
        entropy,
        wall_clock_ns: 0,
        hostname: options.hostname.clone(),
        nonce: *nonce.bytes(),
    };
    AgentLink::for_restore(before, restored, Arc::clone(timer))
        .map(Some)
        .map_err(BuildError::process("create an event descriptor"))
}

//! Builds a machine: KVM, memory, devices, kernel, processors, in this order.

use std::mem;
use std::sync::Arc;

use event_manager::MutEventSubscriber;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VmFd};

use super::Machine;
use super::agent_link::AgentLink;
use super::boot_timer::{BootTimer, Step};
use super::devices::Devices;
use super::ending::EndSignal;
use super::error::BuildError;
use super::take::Progress;
use crate::boot;
use crate::config::{HostKvm, MachineConfig, VcpuCount};
use crate::kvm::{self, refused};
use crate::memory::{self, GuestMemory, layout};
use crate::pvm::{self, Pvm};
use crate::vcpu::{Sampler, Vcpu, cpuid};

impl Machine {
    /// Builds the machine that `config` describes. Nothing of the guest has
    /// run yet when this returns.
    ///
    /// # Errors
    /// A [`BuildError`], which says what is missing and what to do.
    pub fn build(config: &MachineConfig, timer: Arc<BootTimer>) -> Result<Self, BuildError> {
        let kvm = kvm::open_checked()?;
        let (vm, pvm) = create_vm(&kvm, config)?;
        timer.stamp(Step::KvmReady);

        let memory = memory::allocate(config.machine.mem_size_mib, config.machine.huge_pages)?;
        memory::register(&vm, &memory)?;
        timer.stamp(Step::MemoryReady);

        let end = EndSignal::new().map_err(BuildError::process("create an event descriptor"))?;
        let mut devices = Devices::new(&vm, &end)?;
        let agent = match (&config.vsock, &config.readiness) {
            (Some(_), Some(readiness)) => Some(
                AgentLink::new(readiness.boot_nonce, Arc::clone(&timer))
                    .map_err(BuildError::process("create an event descriptor"))?,
            ),
            _ => None,
        };

        devices.add_drives(&vm, &memory, config)?;
        if let Some(vsock) = &config.vsock {
            devices.add_vsock(&vm, &memory, vsock, agent.clone())?;
        }
        devices.appear(config)?;

        let vcpu_count = config.machine.vcpu_count;
        let entry = boot::load(&memory, &config.boot_source, vcpu_count, &devices.slots)?;
        timer.stamp(Step::KernelLoaded);

        let vcpus = (0..vcpu_count.get())
            .map(|id| Vcpu::new(&vm, id))
            .collect::<Result<Vec<_>, _>>()?;
        let tsc_khz = vcpus.first().and_then(Vcpu::tsc_khz);
        let mut cpuid = guest_cpuid(&kvm, &vm, vcpu_count, tsc_khz)?;
        if let Some(pvm) = &pvm {
            pvm.boot_begins(&vm)?;
            pvm::cpuid::restrict(&mut cpuid);
        } else {
            cpuid::leave_out_empty(&mut cpuid);
        }
        for vcpu in &vcpus {
            vcpu.prepare(&mut cpuid, entry)?;
        }
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
            Progress::new(config.clone()),
        ))
    }

    /// A machine of these parts that nobody watches yet.
    pub(super) fn assemble(parts: Parts, progress: Progress) -> Self {
        let Parts {
            vcpus,
            mut devices,
            end,
            agent,
            timer,
            pvm,
            vm,
            kvm,
            memory,
        } = parts;
        let readiness = progress.config.readiness;
        Self {
            vcpus,
            buses: Arc::new(mem::take(&mut devices.buses)),
            vsock_subscriber: devices
                .vsock
                .take()
                .map(|vsock| Box::new(vsock) as Box<dyn MutEventSubscriber>),
            devices,
            end,
            agent,
            ready_timeout: readiness.map(|readiness| readiness.ready_timeout_ms),
            timer,
            sampler: Sampler::default(),
            boot_profile: None,
            profile_server: None,
            control: None,
            pvm,
            progress,
            vm,
            kvm,
            memory,
        }
    }
}

/// What a boot and a restore make each in its own way.
pub(super) struct Parts {
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) devices: Devices,
    pub(super) end: EndSignal,
    pub(super) agent: Option<AgentLink>,
    pub(super) timer: Arc<BootTimer>,
    pub(super) pvm: Option<Pvm>,
    pub(super) vm: VmFd,
    pub(super) kvm: Kvm,
    pub(super) memory: GuestMemory,
}

/// A virtual machine with its interrupt controllers and timer, and what the
/// host's KVM leaves to us.
pub(super) fn create_vm(
    kvm: &Kvm,
    config: &MachineConfig,
) -> Result<(VmFd, Option<Pvm>), BuildError> {
    let vm = kvm
        .create_vm()
        .map_err(refused("create a virtual machine"))?;
    vm.set_tss_address(layout::KVM_TSS as usize)
        .map_err(refused("reserve its pages in the guest's memory"))?;
    vm.create_irq_chip()
        .map_err(refused("create the interrupt controllers"))?;
    // The speaker's port belongs to the timer: it stays in the kernel too.
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..kvm_pit_config::default()
    };
    vm.create_pit2(pit).map_err(refused("create the timer"))?;
    let pvm = match config.host_kvm {
        HostKvm::Hardware => None,
        HostKvm::Pvm => Some(Pvm::enable(
            kvm,
            &vm,
            config.boot_source.kernel_image_path.clone(),
        )?),
    };
    Ok((vm, pvm))
}

fn guest_cpuid(
    kvm: &Kvm,
    vm: &VmFd,
    vcpus: VcpuCount,
    tsc_khz: Option<u32>,
) -> Result<CpuId, BuildError> {
    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(refused("list the supported CPUID leaves"))?;
    let topology = cpuid::Topology {
        vcpus: vcpus.get(),
        tsc_khz,
        tsc_deadline: vm.check_extension(Cap::TscDeadlineTimer),
    };
    cpuid::prepare(&mut cpuid, topology).map_err(BuildError::Cpuid)?;
    Ok(cpuid)
}

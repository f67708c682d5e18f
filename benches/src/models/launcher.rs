//! Launching guests, for the models that run in guests.

use std::time::Duration;

use guest_agent::protocol::{DiskRole, Name};
use images::kernel::COMMAND_LINE;
use vmm::config::HostKvm;
use vmm::guest::{Drive, Guest, GuestSpec, RunRoot};

use super::{Clock, Images, ModelError, ModelId, PATIENCE};
use crate::result::{Event, Waterfall};

/// How long a guest may boot where its kernel is emulated.
const PVM_READY_TIMEOUT: Duration = Duration::from_mins(10);

/// Launches guests of the images.
pub(super) struct Launcher {
    model: ModelId,
    images: Images,
    made: u32,
}

impl Launcher {
    /// For guests of `model`.
    pub(super) fn new(model: ModelId, images: Images) -> Self {
        Self {
            model,
            images,
            made: 0,
        }
    }

    /// The images.
    pub(super) fn images(&self) -> &Images {
        &self.images
    }

    /// Boots a guest; `whole_machine` makes the template its root.
    pub(super) fn start(
        &mut self,
        vcpus: u32,
        memory_mib: u64,
        whole_machine: bool,
    ) -> Result<(Guest, Waterfall), ModelError> {
        let model = self.model;
        let failed = |doing: &'static str| move |error| ModelError::machinery(model, doing, error);
        self.made += 1;
        let clock = Clock::start();
        let name = format!("cmp-{}-{}", std::process::id(), self.made);
        let name = Name::new(name)
            .map_err(|error| ModelError::machinery(model, "naming a guest", error))?;
        let root = RunRoot::for_user().map_err(failed("finding the run directory"))?;
        let reservation = root
            .reserve(&name)
            .map_err(failed("reserving a guest's name"))?;

        let mut spec = GuestSpec::new(self.images.kernel.clone(), COMMAND_LINE);
        spec.host_kvm = self.images.host_kvm;
        if spec.host_kvm == HostKvm::Pvm {
            spec.cmdline = format!("{} {}", spec.cmdline, vmm::pvm::COMMAND_LINE);
            spec.ready_timeout = PVM_READY_TIMEOUT
                .as_millis()
                .try_into()
                .ok()
                .and_then(|ms: u64| ms.try_into().ok())
                .unwrap_or(spec.ready_timeout);
        }
        spec.vcpus = u64::from(vcpus).try_into().unwrap_or(spec.vcpus);
        spec.memory = memory_mib.try_into().unwrap_or(spec.memory);
        spec.initrds = vec![self.images.initramfs.clone()];
        let template = self.images.template_name.clone();
        // Without a data disk: what instances write is kept in memory, as it
        // is with `host-vps` here.
        spec.drives = vec![Drive {
            role: DiskRole::Template(template.clone()),
            path: self.images.template.clone(),
        }];
        spec.machine_root = whole_machine.then_some(template);
        spec.ephemeral = true;

        let guest = reservation
            .start(&spec, None)
            .map_err(failed("starting a guest"))?;
        let mut waterfall = Waterfall::new();
        let spans = guest.spans();
        for (span, event) in [
            ("process_start", Event::RuntimeStarted),
            ("first_instruction", Event::KernelEntry),
            ("init", Event::Init),
            ("agent_ready", Event::Ready),
        ] {
            if let Some(at_ns) = spans.get(span) {
                waterfall.set(event, clock.since_start(*at_ns));
            }
        }
        Ok((guest, waterfall))
    }
}

/// A guest's end, nothing of it left.
pub(super) fn stop(model: ModelId, guest: Guest) -> Result<(), ModelError> {
    let directory = guest.dir().path().to_owned();
    guest
        .stop(PATIENCE)
        .map_err(|error| ModelError::machinery(model, "stopping a guest", error))?;
    if directory.exists() {
        return Err(ModelError::Left {
            model,
            what: directory.display().to_string(),
        });
    }
    Ok(())
}

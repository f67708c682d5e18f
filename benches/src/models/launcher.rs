//! Launching guests, for the models that run in guests.

use std::sync::atomic::{AtomicU32, Ordering};

use guest_agent::protocol::{DiskRole, Name};
use tempfile::TempDir;
use vmm::guest::{
    Drive, Guest, GuestError, GuestSpec, Reservation, RestoreSpec, RunRoot, SnapshotOptions,
};

use super::{Clock, Images, ModelError, ModelId, PATIENCE};
use crate::result::{Event, Waterfall};

/// The snapshot's name in its directory.
const SNAPSHOT: &str = "snapshot";

/// Launches guests of the images.
pub(super) struct Launcher {
    model: ModelId,
    images: Images,
    made: AtomicU32,
    /// Of a freshly booted guest, in this directory.
    snapshot: Option<TempDir>,
}

impl Launcher {
    /// For guests of `model`.
    pub(super) fn new(model: ModelId, images: Images) -> Self {
        Self {
            model,
            images,
            made: AtomicU32::new(0),
            snapshot: None,
        }
    }

    /// The images.
    pub(super) fn images(&self) -> &Images {
        &self.images
    }

    /// Boots a guest; `whole_machine` makes the template its root.
    pub(super) fn start(
        &self,
        vcpus: u32,
        memory_mib: u64,
        whole_machine: bool,
    ) -> Result<(Guest, Waterfall), ModelError> {
        let clock = Clock::start();
        let reservation = self.reserve()?;
        let mut spec = GuestSpec::new(
            self.images.kernel.clone(),
            self.images.flavour.command_line(),
        );
        spec.run_on(self.images.host_kvm);
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
            .map_err(|error| self.failed("starting a guest", error))?;
        let waterfall = events(&guest, clock);
        Ok((guest, waterfall))
    }

    /// Boots a guest as [`Launcher::start`] does, takes a snapshot of it and
    /// ends it. Does nothing when there is a snapshot.
    pub(super) fn take_snapshot(
        &mut self,
        vcpus: u32,
        memory_mib: u64,
        whole_machine: bool,
    ) -> Result<(), ModelError> {
        if self.snapshot.is_some() {
            return Ok(());
        }
        let directory = tempfile::Builder::new()
            .prefix("insula-compare-")
            .tempdir()
            .map_err(|source| {
                ModelError::host("make a directory in", std::env::temp_dir(), source)
            })?;
        let (guest, _) = self.start(vcpus, memory_mib, whole_machine)?;
        let taken = guest
            .dir()
            .snapshot(&directory.path().join(SNAPSHOT), SnapshotOptions::default())
            .map_err(|error| self.failed("taking a snapshot of a guest", error));
        stop(self.model, guest)?;
        taken?;
        self.snapshot = Some(directory);
        Ok(())
    }

    /// Restores a guest from the snapshot; it was asked for at `clock`'s start.
    /// Any thread may do so, as often as it likes; the guest ends with it.
    pub(super) fn restore(&self, clock: Clock) -> Result<(Guest, Waterfall), ModelError> {
        let Some(directory) = &self.snapshot else {
            return Err(ModelError::Unavailable {
                model: self.model,
                reason: "no snapshot was taken to restore it from".into(),
            });
        };
        let spec = RestoreSpec {
            snapshot: directory.path().join(SNAPSHOT),
            ephemeral: true,
            ..RestoreSpec::default()
        };
        let guest = self
            .reserve()?
            .restore(&spec, None)
            .map_err(|error| self.failed("restoring a guest", error))?;
        let waterfall = events(&guest, clock);
        Ok((guest, waterfall))
    }

    /// A fresh name, reserved.
    fn reserve(&self) -> Result<Reservation, ModelError> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let name = format!("cmp-{}-{number}", std::process::id());
        let name = Name::new(name)
            .map_err(|error| ModelError::machinery(self.model, "naming a guest", error))?;
        RunRoot::for_user()
            .and_then(|root| root.reserve(&name))
            .map_err(|error| self.failed("reserving a guest's name", error))
    }

    fn failed(&self, doing: &str, error: GuestError) -> ModelError {
        ModelError::machinery(self.model, doing, error)
    }
}

/// The events of a guest's start, since `clock`'s.
fn events(guest: &Guest, clock: Clock) -> Waterfall {
    let mut waterfall = Waterfall::new();
    for (span, event) in [
        ("process_start", Event::RuntimeStarted),
        ("first_instruction", Event::KernelEntry),
        ("init", Event::Init),
        ("agent_ready", Event::Ready),
    ] {
        if let Some(at_ns) = guest.spans().get(span) {
            waterfall.set(event, clock.since_start(*at_ns));
        }
    }
    waterfall
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

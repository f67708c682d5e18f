//! Which models there are on this host.

use std::path::PathBuf;

use anyhow::Context;
use images::kernel::Flavour;
use images::templates::Template;
use images::{Request, Store};
use vmm::config::HostKvm;

use compare::environment::{Environment, HostKind};
use compare::models::{
    GuestVpsModel, HostVpsModel, Images, MicrovmModel, Model, ModelId, ProcessModel,
};
use compare::result::UnavailableModel;

use crate::place;

/// Processors of every guest on a PVM host. Several spend themselves on ticks: one
/// measures the model, two would measure the emulator's time keeping.
const PVM_VCPUS: u8 = 1;

/// The models that can be tried, and those that can't.
pub(crate) struct Registry {
    /// `process`, for finding the amount of work.
    pub(crate) baseline: Box<dyn Model>,
    /// The models that were asked for.
    pub(crate) models: Vec<Box<dyn Model>>,
    /// Those that can't be tried, and why.
    pub(crate) unavailable: Vec<UnavailableModel>,
}

/// Finds the models' images, building what is not there.
pub(crate) fn build(wanted: &[ModelId], environment: &Environment) -> anyhow::Result<Registry> {
    let store = Store::user()?;
    let progress = images::Progress::stderr();
    let workload = match std::env::var_os("INSULA_WORKLOAD") {
        Some(path) => PathBuf::from(path),
        None => {
            store
                .ensure(Request::Workload, &progress)
                .context("without its workload there is nothing to compare")?
                .path
        }
    };
    let mut registry = Registry {
        baseline: Box::new(ProcessModel::new(workload.clone())),
        models: Vec::new(),
        unavailable: Vec::new(),
    };
    for &model in wanted {
        match create(model, &store, &progress, environment, &workload) {
            Ok(created) => registry.models.push(created),
            Err(reason) => registry
                .unavailable
                .push(UnavailableModel { model, reason }),
        }
    }
    Ok(registry)
}

/// The model, or why it does not run here.
fn create(
    model: ModelId,
    store: &Store,
    progress: &images::Progress,
    environment: &Environment,
    workload: &std::path::Path,
) -> Result<Box<dyn Model>, String> {
    let is_guest = matches!(model, ModelId::GuestVps | ModelId::Microvm);
    if model == ModelId::Process {
        return Ok(Box::new(ProcessModel::new(workload.to_owned())));
    }
    if !rustix::process::geteuid().is_root() && model == ModelId::HostVps {
        return Err("VPSs on the host need root: run it with sudo".into());
    }
    let is_pvm = environment.host == HostKind::Pvm;
    let shared_vcpus = if is_pvm {
        PVM_VCPUS.into()
    } else {
        environment.cpus
    };
    if let Some(reason) = place::no_guests().filter(|_| is_guest && !is_pvm) {
        return Err(reason);
    }
    let find = |request: Request| {
        store
            .ensure(request, progress)
            .map(|image| image.path)
            .map_err(|error| error.to_string())
    };
    let flavour = if is_pvm {
        Flavour::for_pvm(PVM_VCPUS)
    } else {
        Flavour::Hardware
    };
    let images = Images {
        flavour,
        host_kvm: if is_pvm {
            HostKvm::Pvm
        } else {
            HostKvm::Hardware
        },
        kernel: if is_guest {
            find(Request::Kernel(flavour))?
        } else {
            PathBuf::new()
        },
        initramfs: if is_guest {
            find(Request::Initramfs)?
        } else {
            PathBuf::new()
        },
        template: find(Request::Template(Template::Bench))?,
        template_name: Template::Bench
            .name()
            .parse()
            .map_err(|error| format!("{error}"))?,
        agent: find(Request::Agent)?,
    };
    Ok(match model {
        ModelId::HostVps => Box::new(HostVpsModel::new(images)),
        ModelId::GuestVps => Box::new(GuestVpsModel::new(images, shared_vcpus)),
        _ => Box::new(MicrovmModel::new(images)),
    })
}

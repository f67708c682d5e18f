//! From options to a running guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guest_agent::protocol::{DiskRole, Name};
use images::kernel;
use vmm::config::{HostKvm, ReadyTimeout};
use vmm::guest::{Drive, Guest, GuestSpec, RunRoot, Size};

use crate::assets::{self, Assets};
use crate::cli::MachineOptions;
use crate::companions;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::place::{self, Kvm, Place};

/// The template of guests whose starter named none.
const DEFAULT_TEMPLATE: &str = "busybox";
/// Size of a data disk when nobody says otherwise.
const DEFAULT_DISK: Size = Size::mib(4096);

/// How long a guest may take on a PVM host, where any kernel but ours takes
/// minutes.
const PVM_READY_TIMEOUT: Duration = Duration::from_mins(10);
/// Instructions that the boot of a distribution's kernel takes, roughly.
const UNTRIMMED_BOOT: u64 = 150_000_000;

/// What kind of guest is wanted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Purpose {
    /// It ends with this command.
    pub(crate) ephemeral: bool,
    /// Its own root is this template: a microVM, without VPSs and their disk.
    pub(crate) machine_root: Option<Name>,
    /// Its boot is profiled.
    pub(crate) profile: bool,
    /// Its host name.
    pub(crate) hostname: Option<Name>,
}

/// Starts a guest and waits until it is ready.
pub(crate) fn launch(
    name: &Name,
    options: &MachineOptions,
    purpose: &Purpose,
    place: Place,
    output: &Output,
) -> Result<Guest, Failure> {
    let kvm = place::kvm_for(place)?;
    companions::machine_process(output)?;
    let assets = Assets::open(output)?;
    let kernel = match &options.kernel {
        Some(path) => {
            warn_of_slow_boot(&kvm, output);
            absolute(path)?
        }
        None => assets.kernel(&kvm)?,
    };
    let initramfs = assets.initramfs()?;
    let mut drives = Vec::new();
    for name in templates(options, purpose)? {
        let path = assets.template(name.as_str())?;
        drives.push(Drive {
            role: DiskRole::Template(name),
            path,
        });
    }

    let interrupt = Interrupt::catch()?;
    interrupt.check()?;
    let reservation = RunRoot::for_user()?.reserve(name)?;
    if let Some(path) = data_disk(&reservation.dir().disks_path(), options, purpose)? {
        drives.push(Drive {
            role: DiskRole::Data,
            path,
        });
    }
    let mut spec = GuestSpec::new(kernel, kernel::COMMAND_LINE);
    if matches!(kvm, Kvm::Pvm { .. }) {
        spec.host_kvm = HostKvm::Pvm;
        spec.cmdline = format!("{} {}", spec.cmdline, vmm::pvm::COMMAND_LINE);
        spec.ready_timeout = ReadyTimeout::try_from(PVM_READY_TIMEOUT.as_millis() as u64)
            .unwrap_or(ReadyTimeout::MAX);
    }
    spec.vcpus = options.vcpus.unwrap_or(spec.vcpus);
    spec.memory = options.memory.unwrap_or(spec.memory);
    spec.initrds = vec![initramfs];
    spec.drives = drives;
    if let Some(more) = &options.cmdline {
        spec.cmdline = format!("{} {more}", spec.cmdline);
    }
    if let Some(timeout) = options.ready_timeout {
        spec.ready_timeout =
            ReadyTimeout::try_from(timeout.as_millis() as u64).map_err(Failure::usage)?;
    }
    spec.hostname.clone_from(&purpose.hostname);
    spec.machine_root.clone_from(&purpose.machine_root);
    spec.profile = purpose.profile;
    spec.ephemeral = purpose.ephemeral;
    output.detail(format!(
        "starting guest {name}: {} vCPU, {}, kernel {}",
        spec.vcpus.get(),
        Size::new(spec.memory.bytes()),
        spec.kernel.display()
    ));
    let spinner = output.spinner(format!("starting guest {name}"));
    let started = reservation.start(&spec, Some(interrupt.fd()));
    drop(spinner);
    // Which signal it was is known here, not there.
    interrupt.check()?;
    Ok(started?)
}

/// Says what a kernel that is not ours will take where it is emulated.
fn warn_of_slow_boot(kvm: &Kvm, output: &Output) {
    if let Kvm::Pvm { insn_per_s } = kvm {
        let seconds = UNTRIMMED_BOOT / (*insn_per_s).max(1);
        output.say(format!(
            "this kernel's code is emulated here, {:.1} million instructions a second: if it is \
             not built for that, its boot will take {seconds} s or more; without --kernel, one \
             that is gets used",
            *insn_per_s as f64 / 1e6
        ));
    }
}

fn templates(options: &MachineOptions, purpose: &Purpose) -> Result<Vec<Name>, Failure> {
    let mut names = options.templates.clone();
    if let Some(root) = &purpose.machine_root {
        names.insert(0, root.clone());
    }
    if names.is_empty() {
        names.push(DEFAULT_TEMPLATE.parse().map_err(Failure::usage)?);
    }
    let mut seen = Vec::new();
    names.retain(|name| {
        let new = !seen.contains(name);
        seen.push(name.clone());
        new
    });
    for name in &names {
        assets::template(name.as_str())?;
    }
    Ok(names)
}

/// The guest's disk for VPSs: the one that was named, else one that goes with
/// the guest. A one-shot guest has none, and keeps files in memory.
fn data_disk(
    own: &Path,
    options: &MachineOptions,
    purpose: &Purpose,
) -> Result<Option<PathBuf>, Failure> {
    let size = options.disk.unwrap_or(DEFAULT_DISK);
    if let Some(path) = &options.data {
        let path = absolute(path)?;
        if !path.exists() {
            assets::make_data_disk(&path, size)?;
        }
        return Ok(Some(path));
    }
    if purpose.ephemeral && options.disk.is_none() {
        return Ok(None);
    }
    fs::create_dir(own)
        .map_err(|error| Failure::new(format!("cannot make {}: {error}", own.display())))?;
    let path = own.join("data.ext4");
    assets::make_data_disk(&path, size)?;
    Ok(Some(path))
}

/// The machine process has another working directory than the user.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::new(format!("cannot find {}: {error}", path.display())))
}

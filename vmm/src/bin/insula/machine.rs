//! From options to a running guest.

use std::fs;
use std::path::{Path, PathBuf};

use guest_agent::protocol::{DiskRole, Name};
use images::kernel;
use vmm::config::{HostKvm, ReadyTimeout, VcpuCount};
use vmm::guest::{Drive, Guest, GuestSpec, RunRoot, Size};

use crate::assets::{self, Assets};
use crate::cli::MachineOptions;
use crate::companions;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::place::{self, Kvm, Place};
use crate::warm::WarmStart;

/// The template of guests whose starter named none.
const DEFAULT_TEMPLATE: &str = "busybox";
/// Size of a data disk when nobody says otherwise.
const DEFAULT_DISK: Size = Size::mib(4096);

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
    /// It boots, even where a snapshot of such a guest is kept.
    pub(crate) cold: bool,
}

/// The guest's disk for VPSs.
#[derive(Debug)]
enum DataDisk {
    /// A one-shot guest has none, and keeps files in memory.
    None,
    /// Made for the guest, and gone with it.
    Own(Size),
    /// The one that was named; made with this size when it is not there.
    Named(PathBuf, Size),
}

/// Starts a guest and waits until it is ready. It is restored from a snapshot
/// of such a guest where one is kept; else it boots, and one is kept of it.
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
    let (kernel, cmdline) = if let Some(path) = &options.kernel {
        warn_of_slow_boot(&kvm, output);
        (absolute(path)?, foreign_command_line(&kvm))
    } else {
        let flavour = kvm.kernel(options.vcpus.unwrap_or(VcpuCount::MIN));
        (assets.kernel(flavour)?, flavour.command_line().to_owned())
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

    let mut spec = GuestSpec::new(kernel, &cmdline);
    if matches!(kvm, Kvm::Pvm { .. }) {
        spec.run_on(HostKvm::Pvm);
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

    let disk = data_disk(options, purpose)?;
    let interrupt = Interrupt::catch()?;
    interrupt.check()?;
    let warm = warm_start(&spec, &disk, purpose, output);
    let spinner = output.spinner(format!("starting guest {name}"));
    if let Some(warm) = &warm {
        let restored = warm.restore(name, &spec, interrupt.fd());
        // Which signal it was is known here, not there.
        interrupt.check()?;
        if let Some(guest) = restored? {
            return Ok(guest);
        }
    }
    let guest = boot(name, spec, &disk, interrupt, output)?;
    if let Some(warm) = &warm {
        warm.keep(&guest);
        interrupt.check()?;
    }
    drop(spinner);
    Ok(guest)
}

/// The warm start of such guests. A disk that was named has a life of its own:
/// a guest of a snapshot would have a copy.
fn warm_start<'a>(
    spec: &GuestSpec,
    disk: &DataDisk,
    purpose: &Purpose,
    output: &'a Output,
) -> Option<WarmStart<'a>> {
    if purpose.cold || purpose.profile {
        return None;
    }
    let size = match disk {
        DataDisk::None => None,
        DataDisk::Own(size) => Some(*size),
        DataDisk::Named(..) => return None,
    };
    WarmStart::of(spec, size, output)
}

/// Boots a guest; `spec` lacks its data disk.
fn boot(
    name: &Name,
    mut spec: GuestSpec,
    disk: &DataDisk,
    interrupt: Interrupt,
    output: &Output,
) -> Result<Guest, Failure> {
    let reservation = RunRoot::for_user()?.reserve(name)?;
    if let Some(path) = make_data_disk(disk, &reservation.dir().disks_path())? {
        spec.drives.push(Drive {
            role: DiskRole::Data,
            path,
        });
    }
    output.detail(format!(
        "booting guest {name}: {} vCPU, {}, kernel {}",
        spec.vcpus.get(),
        Size::new(spec.memory.bytes()),
        spec.kernel.display()
    ));
    let started = reservation.start(&spec, Some(interrupt.fd()));
    // Which signal it was is known here, not there.
    interrupt.check()?;
    Ok(started?)
}

/// The command line of a kernel that is none of ours.
fn foreign_command_line(kvm: &Kvm) -> String {
    match kvm {
        Kvm::Pvm { .. } => format!("{} {}", kernel::COMMAND_LINE, vmm::pvm::SPARING),
        Kvm::Hardware | Kvm::Missing { .. } => kernel::COMMAND_LINE.to_owned(),
    }
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

/// The disk that is asked for.
fn data_disk(options: &MachineOptions, purpose: &Purpose) -> Result<DataDisk, Failure> {
    let size = options.disk.unwrap_or(DEFAULT_DISK);
    match &options.data {
        Some(path) => Ok(DataDisk::Named(absolute(path)?, size)),
        None if purpose.ephemeral && options.disk.is_none() => Ok(DataDisk::None),
        None => Ok(DataDisk::Own(size)),
    }
}

/// Sees to it that the disk is there: the guest's own in the directory `own`,
/// which is made.
fn make_data_disk(disk: &DataDisk, own: &Path) -> Result<Option<PathBuf>, Failure> {
    let (path, size) = match disk {
        DataDisk::None => return Ok(None),
        DataDisk::Named(path, _) if path.exists() => return Ok(Some(path.clone())),
        DataDisk::Named(path, size) => (path.clone(), *size),
        DataDisk::Own(size) => {
            fs::create_dir(own)
                .map_err(|error| Failure::new(format!("cannot make {}: {error}", own.display())))?;
            (own.join("data.ext4"), *size)
        }
    };
    assets::make_data_disk(&path, size)?;
    Ok(Some(path))
}

/// The machine process has another working directory than the user.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::new(format!("cannot find {}: {error}", path.display())))
}

//! Loads a kernel so that the first processor starts in it, by Linux's 64-bit
//! boot protocol (`Documentation/arch/x86/boot.rst`).

pub mod cmdline;
pub mod initrd;
pub mod kernel;
pub mod long_mode;
pub mod mptable;
pub mod zero_page;

use thiserror::Error;
use vm_memory::GuestAddress;

use crate::config::{BootSource, VcpuCount};
use crate::devices::serial::COM1_GSI;
use crate::memory::GuestMemory;
use cmdline::{CmdlineError, VirtioMmioDevice};
use initrd::InitrdError;
use kernel::KernelError;

/// Why a guest cannot boot.
#[derive(Debug, Error)]
pub enum BootError {
    /// The kernel image.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The initramfs.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The command line.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// A boot structure lies outside guest memory.
    #[error("the {what} does not fit into guest memory: raise mem_size_mib")]
    Memory {
        /// Which structure.
        what: &'static str,
        /// What the memory said.
        source: vm_memory::GuestMemoryError,
    },
}

/// Where the first processor starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryPoint(pub GuestAddress);

/// Puts everything that a kernel needs into guest memory: its image, the
/// initramfs, command line, zero page, MP table, and the tables of long mode.
///
/// # Errors
/// [`BootError`], which names the file at fault.
pub fn load(
    memory: &GuestMemory,
    source: &BootSource,
    vcpus: VcpuCount,
    devices: &[VirtioMmioDevice],
) -> Result<EntryPoint, BootError> {
    let kernel = kernel::load(memory, &source.kernel_image_path)?;
    let initrd = initrd::load(memory, source.initrd_paths.as_slice(), kernel.end)?;
    let cmdline = cmdline::build(source.boot_args.as_str(), devices)?;
    cmdline::write(memory, &cmdline)?;
    zero_page::write(memory, cmdline.len() as u32, initrd)?;
    let lines: Vec<_> = [COM1_GSI]
        .into_iter()
        .chain(devices.iter().map(|device| device.gsi))
        .map(|gsi| gsi as u8)
        .collect();
    mptable::write(memory, vcpus.get(), &lines)?;
    long_mode::write(memory)?;
    Ok(EntryPoint(kernel.entry))
}

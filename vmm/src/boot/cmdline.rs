//! The kernel command line.

use std::fmt::Write;

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::config::MAX_DRIVES;
use crate::memory::{GuestMemory, layout};

/// Bytes that the announcement of one device takes at most:
/// ` virtio_mmio.device=4K@0xd0012000:23`.
const DEVICE_MAX_LENGTH: usize = 37;

/// Bytes that a configuration may use: what Linux takes, without the final NUL
/// and the announcement of every possible device.
pub const MAX_USER_LENGTH: usize =
    layout::CMDLINE_MAX as usize - 1 - (MAX_DRIVES + 1) * DEVICE_MAX_LENGTH;

/// A device that Linux is told of on its command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioMmioDevice {
    /// Guest-physical address of its registers, [`layout::VIRTIO_MMIO_SIZE`] bytes.
    pub address: u64,
    /// Its interrupt line.
    pub gsi: u32,
}

/// Why there is no command line.
#[derive(Debug, Error)]
pub enum CmdlineError {
    /// Too long.
    #[error("the kernel command line has {length} bytes, but Linux takes {max}: shorten boot_args",
            max = layout::CMDLINE_MAX - 1)]
    TooLong {
        /// Its length, in bytes.
        length: usize,
    },
}

/// The configured arguments, and an announcement for each device. It comes
/// before a `--`, after which everything belongs to init.
///
/// # Errors
/// [`CmdlineError::TooLong`].
pub fn build(boot_args: &str, devices: &[VirtioMmioDevice]) -> Result<String, CmdlineError> {
    let (kernel_args, init_args) = match boot_args.split_once(" -- ") {
        Some((kernel_args, init_args)) => (kernel_args, Some(init_args)),
        None => (boot_args, None),
    };
    let mut line = String::with_capacity(boot_args.len() + devices.len() * DEVICE_MAX_LENGTH);
    line.push_str(kernel_args.trim());
    for device in devices {
        if !line.is_empty() {
            line.push(' ');
        }
        // Writing to a string cannot fail.
        let _ = write!(
            line,
            "virtio_mmio.device=4K@{:#x}:{}",
            device.address, device.gsi
        );
    }
    if let Some(init_args) = init_args {
        line.push_str(" -- ");
        line.push_str(init_args);
    }
    if line.len() as u64 >= layout::CMDLINE_MAX {
        return Err(CmdlineError::TooLong { length: line.len() });
    }
    Ok(line)
}

/// Puts the command line and its final NUL into guest memory.
pub(super) fn write(memory: &GuestMemory, line: &str) -> Result<(), BootError> {
    let wrong = |source| BootError::Memory {
        what: "kernel command line",
        source,
    };
    memory
        .write_slice(line.as_bytes(), GuestAddress(layout::CMDLINE))
        .map_err(wrong)?;
    memory
        .write_obj(0u8, GuestAddress(layout::CMDLINE + line.len() as u64))
        .map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: VirtioMmioDevice = VirtioMmioDevice {
        address: layout::VIRTIO_MMIO,
        gsi: 5,
    };

    #[test]
    fn devices_are_announced() {
        assert_eq!(
            build("quiet", &[DEVICE]).unwrap(),
            "quiet virtio_mmio.device=4K@0xd0000000:5"
        );
        assert_eq!(
            build("", &[DEVICE]).unwrap(),
            "virtio_mmio.device=4K@0xd0000000:5"
        );
    }

    #[test]
    fn devices_come_before_the_arguments_of_init() {
        assert_eq!(
            build("quiet -- single", &[DEVICE]).unwrap(),
            "quiet virtio_mmio.device=4K@0xd0000000:5 -- single"
        );
    }

    #[test]
    fn longest_configured_line_fits_with_all_devices() {
        let devices: Vec<_> = (0..=MAX_DRIVES as u64)
            .map(|i| VirtioMmioDevice {
                address: layout::VIRTIO_MMIO + i * 0x1000,
                gsi: 23,
            })
            .collect();
        assert!(build(&"x".repeat(MAX_USER_LENGTH), &devices).is_ok());
        assert!(build(&"x".repeat(3000), &devices).is_err());
    }
}

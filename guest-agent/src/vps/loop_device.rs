//! Loop devices, for kernels that mount EROFS from block devices only.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::raw;

/// A loop device that goes away with its last user.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    /// It is `/dev/loopNUMBER`.
    pub(crate) number: u32,
    /// Keeps it until it has been mounted.
    _device: OwnedFd,
}

/// Attaches a read-only loop device to a file.
pub(crate) fn attach(image: &Path) -> Result<LoopDevice, Errno> {
    let read = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = openat(CWD, image, read, Mode::empty())?;
    let control = openat(
        CWD,
        "/dev/loop-control",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // Another process can take the free device first: then there is another.
    for _ in 0..64 {
        let number = raw::free_loop_device(&control)?;
        let device = openat(CWD, format!("/dev/loop{number}"), read, Mode::empty())?;
        match raw::configure_loop_device(&device, file.as_raw_fd()) {
            Ok(()) => {
                return Ok(LoopDevice {
                    number,
                    _device: device,
                });
            }
            Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::BUSY)
}

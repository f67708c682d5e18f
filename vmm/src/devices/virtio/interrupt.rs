//! The device's way to its driver: interrupt status, configuration
//! generation, `DEVICE_NEEDS_RESET`.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::state::InterruptState;

/// Bit 0 of `InterruptStatus` (virtio 1.2, 4.2.2): the device used a buffer.
pub(super) const STATUS_USED_BUFFER: u32 = 1;
/// Bit 1 of `InterruptStatus`: the configuration, or the device's status, changed.
pub(super) const STATUS_CONFIG_CHANGE: u32 = 2;

/// Shared by a device, its worker thread and its transport.
///
/// All methods may be called from any thread.
#[derive(Debug)]
pub struct Interrupt {
    event: EventFd,
    status: AtomicU32,
    generation: AtomicU32,
    needs_reset: AtomicBool,
}

impl Interrupt {
    /// Creates the eventfd.
    ///
    /// # Errors
    /// The process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            event: EventFd::new(EFD_NONBLOCK)?,
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
        })
    }

    /// The eventfd that KVM turns into an interrupt (irqfd, edge).
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Tells the driver that there are used buffers.
    pub fn used_buffer(&self) {
        self.raise(STATUS_USED_BUFFER);
    }

    /// Tells the driver that the configuration space changed.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(STATUS_CONFIG_CHANGE);
    }

    /// Sets `DEVICE_NEEDS_RESET` (2.1.2) and tells the driver: what is in its
    /// queues makes no sense, and the device no longer touches them.
    pub fn device_needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.raise(STATUS_CONFIG_CHANGE);
    }

    /// Whether the device has asked for a reset since the last one.
    pub fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// `InterruptStatus` as the driver reads it.
    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// `InterruptACK`: clears the bits that the driver has seen, and only
    /// these. One that the device sets again between the driver's read and
    /// this write is lost on purpose: the driver looks into its queues after
    /// it, and so finds what the bit was set for.
    pub(super) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// `ConfigGeneration` as the driver reads it.
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// What belongs to a snapshot. An event that was written has become an
    /// interrupt already: KVM saves those.
    pub(super) fn save(&self) -> InterruptState {
        InterruptState {
            status: self.status(),
            generation: self.generation(),
            needs_reset: self.is_reset_needed(),
        }
    }

    /// Takes over what [`Self::save`] returned.
    pub(super) fn restore(&self, state: &InterruptState) {
        self.status.store(state.status, Ordering::Release);
        self.generation.store(state.generation, Ordering::Release);
        self.needs_reset.store(state.needs_reset, Ordering::Release);
    }

    /// Back to the state after power-on, but for the configuration generation.
    pub(super) fn reset(&self) {
        self.needs_reset.store(false, Ordering::Release);
        self.status.store(0, Ordering::Release);
    }

    fn raise(&self, bits: u32) {
        // Before the event, so that the handler that it starts sees the bit.
        self.status.fetch_or(bits, Ordering::AcqRel);
        // The only error is EAGAIN on a counter that is full: then an
        // interrupt is pending already, which is all that is asked for.
        let _ = self.event.write(1);
    }
}

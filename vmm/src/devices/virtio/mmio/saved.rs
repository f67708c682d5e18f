//! Pausing a device, and its way into a snapshot and out of it.

use super::registers::status;
use super::{QueueRegisters, Transport};
use crate::devices::virtio::ActivateError;
use crate::devices::virtio::state::{DeviceStateError, TransportState};

impl Transport {
    /// Has the device leave its queues alone until [`Self::resume`]. Its
    /// registers answer as ever.
    pub fn pause(&mut self) {
        self.device.pause();
    }

    /// Lets the device go on, as if each queue had been notified: what was
    /// notified during the pause is found.
    ///
    /// # Errors
    /// What the device needs of the host is not there; it is paused then.
    pub fn resume(&mut self) -> Result<(), ActivateError> {
        self.device.resume()
    }

    /// What belongs to a snapshot, while the device is paused.
    pub fn save(&self) -> TransportState {
        let progress = if self.active {
            self.device.progress()
        } else {
            None
        };
        TransportState {
            status: self.status,
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            driver_features: self.driver_features,
            driver_features_beyond: self.driver_features_beyond,
            queue_sel: self.queue_sel,
            queues: self.queues.iter().map(QueueRegisters::save).collect(),
            interrupt: self.interrupt.save(),
            progress,
            device: self.device.save(),
        }
    }

    /// Takes over what [`Self::save`] returned, in a transport that no driver
    /// has touched. The device is paused afterwards.
    ///
    /// # Errors
    /// The state is of another device, or none that a driver could have
    /// brought this one to. The transport is of no use then.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), DeviceStateError> {
        self.device.pause();
        self.device.restore(&state.device)?;

        let sizes = self.device.queue_sizes();
        let saved = state.queues.iter().map(|queue| queue.max_size);
        if !saved.eq(sizes.iter().copied()) {
            return Err(DeviceStateError::Queues);
        }
        self.queues = state.queues.iter().map(QueueRegisters::restored).collect();
        self.status = state.status & !status::DEVICE_NEEDS_RESET;
        self.device_features_sel = state.device_features_sel;
        self.driver_features_sel = state.driver_features_sel;
        self.driver_features = state.driver_features;
        self.driver_features_beyond = state.driver_features_beyond;
        self.queue_sel = state.queue_sel;
        self.interrupt.restore(&state.interrupt);

        if self.has(status::FEATURES_OK) && !self.are_features_acceptable() {
            return Err(DeviceStateError::Registers(
                "features were negotiated that this device does not have",
            ));
        }
        let Some(progress) = &state.progress else {
            // What was active without queues had asked for a reset, and waits
            // for it now.
            self.active = self.has(status::DRIVER_OK) && state.interrupt.needs_reset;
            return Ok(());
        };
        if !self.has(status::DRIVER_OK) || !self.has(status::FEATURES_OK) {
            return Err(DeviceStateError::Registers(
                "the device works on queues without a driver",
            ));
        }
        if progress.len() != self.queues.len() {
            return Err(DeviceStateError::Queues);
        }
        self.try_activate(Some(progress))
            .map_err(|error| DeviceStateError::Activate(error.to_string()))?;
        self.active = true;
        Ok(())
    }
}

//! A machine's devices in a snapshot: all of them, in their order, by kind and
//! name.

use std::sync::PoisonError;

use minicbor::{Decode, Encode};
use thiserror::Error;

use super::devices::Devices;
use crate::devices::i8042::ResetLineState;
use crate::devices::serial::SerialStateError;
use crate::devices::virtio::state::{DeviceStateError, TransportState};
use crate::snapshot::DeviceState;

const SERIAL: &str = "serial";
const SERIAL_ID: &str = "com1";
const RESET_LINE: &str = "i8042";
const RESET_LINE_ID: &str = "reset";
/// A virtio-blk device.
pub(super) const BLOCK: &str = "virtio-block";
/// The virtio-vsock device.
pub(super) const VSOCK: &str = "virtio-vsock";
/// Its name: there is one.
pub(super) const VSOCK_ID: &str = "vsock";

/// Every kind of device that there is, with the version of its state.
pub(super) const KNOWN: [(&str, u32); 4] = [(SERIAL, 1), (RESET_LINE, 1), (BLOCK, 1), (VSOCK, 1)];

/// Why the devices of a machine cannot go on from a snapshot.
#[derive(Debug, Error)]
pub enum DevicesError {
    /// The snapshot lacks one.
    #[error(
        "the snapshot has no device {kind:?} ({id}), which this guest's configuration asks for: \
         restore it with the devices that it had"
    )]
    Missing {
        /// What it is.
        kind: String,
        /// Which.
        id: String,
    },
    /// The snapshot has another one, or one more.
    #[error(
        "the snapshot has a device {kind:?} ({id}), which is not at its place in this guest's \
         configuration: restore it with the devices that it had"
    )]
    Unexpected {
        /// What it is.
        kind: String,
        /// Which.
        id: String,
    },
    /// Its state cannot be read.
    #[error("the snapshot's state of device {kind:?} ({id}) cannot be read: {reason}")]
    Malformed {
        /// What it is.
        kind: String,
        /// Which.
        id: String,
        /// Why.
        reason: String,
    },
    /// A virtio device refuses its state.
    #[error("device {kind:?} ({id}) cannot go on from the snapshot: {source}")]
    Virtio {
        /// What it is.
        kind: String,
        /// Which.
        id: String,
        /// Why.
        source: DeviceStateError,
    },
    /// The console refuses its state.
    #[error(transparent)]
    Serial(#[from] SerialStateError),
}

impl Devices {
    /// What belongs to a snapshot, of devices that are paused.
    pub(super) fn save(&self) -> Vec<DeviceState> {
        let serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        let mut states = vec![
            state(SERIAL, SERIAL_ID, &serial.save()),
            state(RESET_LINE, RESET_LINE_ID, &ResetLineState {}),
        ];
        for slot in &self.virtio {
            states.push(state(slot.kind, &slot.id, &slot.transport().save()));
        }
        states
    }

    /// Takes over what [`Self::save`] returned, in devices that no guest has
    /// touched. They are paused afterwards.
    ///
    /// # Errors
    /// [`DevicesError`], which names the device.
    pub(super) fn restore(&self, states: &[DeviceState]) -> Result<(), DevicesError> {
        let fixed = [(SERIAL, SERIAL_ID), (RESET_LINE, RESET_LINE_ID)];
        let virtio = self.virtio.iter().map(|slot| (slot.kind, slot.id.as_str()));
        let mut expected = fixed.into_iter().chain(virtio);
        for state in states {
            let found = (state.kind.as_str(), state.id.as_str());
            if expected.next() != Some(found) {
                return Err(DevicesError::Unexpected {
                    kind: state.kind.clone(),
                    id: state.id.clone(),
                });
            }
        }
        if let Some((kind, id)) = expected.next() {
            return Err(DevicesError::Missing {
                kind: kind.to_owned(),
                id: id.to_owned(),
            });
        }
        let [serial, reset_line, virtio @ ..] = states else {
            return Ok(()); // There are as many as was just seen.
        };
        self.serial
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .restore(&read(serial)?)?;
        let ResetLineState {} = read(reset_line)?;
        for (slot, state) in self.virtio.iter().zip(virtio) {
            let saved: TransportState = read(state)?;
            slot.transport()
                .restore(&saved)
                .map_err(|source| DevicesError::Virtio {
                    kind: state.kind.clone(),
                    id: state.id.clone(),
                    source,
                })?;
        }
        Ok(())
    }
}

fn state(kind: &str, id: &str, state: &impl Encode<()>) -> DeviceState {
    let known = KNOWN.iter().find(|(name, _)| *name == kind);
    let mut bytes = Vec::new();
    // Writing to a vector cannot fail, and our own types always encode.
    let encoded = minicbor::encode(state, &mut bytes);
    debug_assert!(encoded.is_ok(), "our own states encode");
    DeviceState {
        kind: kind.to_owned(),
        id: id.to_owned(),
        version: known.map_or(1, |(_, version)| *version),
        bytes,
    }
}

fn read<'b, T: Decode<'b, ()>>(state: &'b DeviceState) -> Result<T, DevicesError> {
    minicbor::decode(&state.bytes).map_err(|error| DevicesError::Malformed {
        kind: state.kind.clone(),
        id: state.id.clone(),
        reason: error.to_string(),
    })
}

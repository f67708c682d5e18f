//! What a snapshot keeps of virtio devices.
//!
//! Everything here comes from a file when it is read, so that it is judged as
//! a driver's writes are: a transport that takes it over ends in a state that
//! a driver could have brought it to.

use minicbor::{Decode, Encode};
use thiserror::Error;

/// The registers of a transport and what is behind them.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct TransportState {
    /// The device status (virtio 1.2, 2.1), without `DEVICE_NEEDS_RESET`.
    #[n(0)]
    pub status: u32,
    /// `DeviceFeaturesSel`.
    #[n(1)]
    pub device_features_sel: u32,
    /// `DriverFeaturesSel`.
    #[n(2)]
    pub driver_features_sel: u32,
    /// The features that the driver accepted.
    #[n(3)]
    pub driver_features: u64,
    /// Whether the driver set feature bits from 64 up.
    #[n(4)]
    pub driver_features_beyond: bool,
    /// `QueueSel`.
    #[n(5)]
    pub queue_sel: u32,
    /// The registers of each queue.
    #[n(6)]
    pub queues: Vec<QueueRegistersState>,
    /// The device's way to its driver.
    #[n(7)]
    pub interrupt: InterruptState,
    /// How far the device was with each queue; absent of a device that did not
    /// work on them.
    #[n(8)]
    pub progress: Option<Vec<QueueProgress>>,
    /// The device behind the registers.
    #[n(9)]
    pub device: DeviceState,
}

/// The registers of a queue, as the driver wrote them.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct QueueRegistersState {
    /// `QueueNumMax`.
    #[n(0)]
    pub max_size: u16,
    /// `QueueNum`.
    #[n(1)]
    pub size: u32,
    /// `QueueReady`.
    #[n(2)]
    pub ready: bool,
    /// Guest address of the descriptor table.
    #[n(3)]
    pub descriptors: u64,
    /// Guest address of the available ring.
    #[n(4)]
    pub driver: u64,
    /// Guest address of the used ring.
    #[n(5)]
    pub device: u64,
}

/// How far a device is with a queue. Both count entries since activation and
/// wrap around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct QueueProgress {
    /// The next entry of the available ring to look at.
    #[n(0)]
    pub next_avail: u16,
    /// The next entry of the used ring to write.
    #[n(1)]
    pub next_used: u16,
}

/// The device's way to its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct InterruptState {
    /// `InterruptStatus`.
    #[n(0)]
    pub status: u32,
    /// `ConfigGeneration`.
    #[n(1)]
    pub generation: u32,
    /// Whether the device asks for a reset.
    #[n(2)]
    pub needs_reset: bool,
}

/// A device itself.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum DeviceState {
    /// A disk.
    #[n(0)]
    Block(#[n(0)] BlockState),
    /// The channel between host and guest.
    #[n(1)]
    Vsock(#[n(0)] VsockState),
}

/// A disk: what the guest has learnt of it. Its contents are kept elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct BlockState {
    /// Size in bytes.
    #[n(0)]
    pub capacity: u64,
    /// Whether the guest may only read.
    #[n(1)]
    pub read_only: bool,
}

/// A vsock device. No connection survives a snapshot, and the guest's context
/// identifier comes from the configuration of the restored machine: the guest
/// is told to look at it again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VsockState {}

/// Why a device cannot go on from a saved state.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DeviceStateError {
    /// The state is of another device.
    #[error("this is {expected}, but the snapshot has the state of {saved}")]
    Kind {
        /// What the device is.
        expected: &'static str,
        /// What the state is of.
        saved: &'static str,
    },
    /// The disk has another size.
    #[error(
        "the disk had {saved} bytes when the snapshot was taken, and has {found} now: give the \
         guest the disk of the snapshot"
    )]
    Capacity {
        /// The size in the snapshot.
        saved: u64,
        /// The size of the file.
        found: u64,
    },
    /// The disk can be written now and could not then, or the reverse.
    #[error("the disk was {} when the snapshot was taken, and is not now", if *.saved { "read-only" } else { "writable" })]
    ReadOnly {
        /// Whether it was read-only.
        saved: bool,
    },
    /// The device has another number of queues, or of another size.
    #[error("the device's queues are not those of the snapshot")]
    Queues,
    /// A driver could not have brought the transport there.
    #[error("the registers make no sense: {0}")]
    Registers(&'static str),
    /// The device refuses what the driver had set up.
    #[error("the device cannot be started again: {0}")]
    Activate(String),
}

impl DeviceStateError {
    /// For a device that is `expected` and got `state`.
    pub(super) fn kind(expected: &'static str, state: &DeviceState) -> Self {
        Self::Kind {
            expected,
            saved: match state {
                DeviceState::Block(_) => "a block device",
                DeviceState::Vsock(_) => "a vsock device",
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn device() -> impl Strategy<Value = DeviceState> {
        prop_oneof![
            (any::<u64>(), any::<bool>()).prop_map(|(capacity, read_only)| {
                DeviceState::Block(BlockState {
                    capacity,
                    read_only,
                })
            }),
            Just(DeviceState::Vsock(VsockState {})),
        ]
    }

    fn queue() -> impl Strategy<Value = (QueueRegistersState, QueueProgress)> {
        let registers = any::<(u16, u32, bool, u64, u64, u64)>();
        (registers, any::<(u16, u16)>()).prop_map(|(r, (next_avail, next_used))| {
            let (max_size, size, ready, descriptors, driver, device) = r;
            let registers = QueueRegistersState {
                max_size,
                size,
                ready,
                descriptors,
                driver,
                device,
            };
            let progress = QueueProgress {
                next_avail,
                next_used,
            };
            (registers, progress)
        })
    }

    prop_compose! {
        fn transport()(
            numbers in any::<(u32, u32, u32, u64, bool, u32)>(),
            queues in prop::collection::vec(queue(), 0..4),
            interrupt in any::<(u32, u32, bool)>(),
            active in any::<bool>(),
            device in device(),
        ) -> TransportState {
            let (registers, progress): (Vec<_>, Vec<_>) = queues.into_iter().unzip();
            TransportState {
                status: numbers.0,
                device_features_sel: numbers.1,
                driver_features_sel: numbers.2,
                driver_features: numbers.3,
                driver_features_beyond: numbers.4,
                queue_sel: numbers.5,
                queues: registers,
                interrupt: InterruptState {
                    status: interrupt.0,
                    generation: interrupt.1,
                    needs_reset: interrupt.2,
                },
                progress: active.then_some(progress),
                device,
            }
        }
    }

    proptest! {
        #[test]
        fn a_transport_survives_its_encoding(state in transport()) {
            let bytes = minicbor::to_vec(&state).unwrap();
            prop_assert_eq!(minicbor::decode::<TransportState>(&bytes).unwrap(), state);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = minicbor::decode::<TransportState>(&bytes);
        }
    }
}

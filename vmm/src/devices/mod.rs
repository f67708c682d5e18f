//! Devices, and the bus on which the guest finds them.

pub mod bus;
pub mod virtio;

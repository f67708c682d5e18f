//! Devices, and the bus on which the guest finds them.

pub mod bus;
pub mod console_log;
pub mod i8042;
pub mod serial;
pub mod virtio;

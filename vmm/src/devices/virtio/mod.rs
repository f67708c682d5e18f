//! Virtio devices (Virtual I/O Device specification, version 1.2) over the
//! MMIO transport.
//!
//! [`mmio::Transport`] is what sits on the bus: registers, feature negotiation
//! and the status state machine. Behind it is a [`VirtioDevice`], which gets
//! its queues when the driver says `DRIVER_OK` and gives them back on reset.

pub mod block;
pub mod chain;
pub mod mmio;
pub mod ring;
pub mod state;
pub mod vsock;

mod device;
mod interrupt;
#[cfg(test)]
mod testing;

pub use device::{ActivateError, Activation, VirtioDevice};
pub use interrupt::Interrupt;

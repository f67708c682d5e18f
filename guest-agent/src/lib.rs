//! The guest agent: PID 1 of an insula guest, and the engine that partitions
//! a Linux kernel into virtual private servers (VPSs), in a guest and on the
//! bare host alike.
//!
//! [`protocol`] is what host and guest say to each other; both sides compile
//! the same module, so a message exists once.

#[cfg(feature = "client")]
pub mod client;
pub mod protocol;

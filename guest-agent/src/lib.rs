//! The guest agent: PID 1 of an insula guest, and the engine that partitions
//! a Linux kernel into virtual private servers (VPSs), in a guest and on the
//! bare host alike.
//!
//! [`protocol`] is what host and guest say to each other; both sides compile
//! the same module, so a message exists once.

#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "agent")]
pub mod init;
#[cfg(feature = "agent")]
pub mod machine;
#[cfg(feature = "agent")]
pub mod oneshot;
#[cfg(feature = "agent")]
pub mod process;
pub mod protocol;
#[cfg(feature = "agent")]
pub mod server;
#[cfg(feature = "agent")]
pub mod service;
#[cfg(feature = "agent")]
pub mod steady;
#[cfg(feature = "agent")]
pub mod supervisor;
#[cfg(feature = "agent")]
mod sys;
#[cfg(feature = "agent")]
pub mod vps;

//! Builds and caches what guests are made of, and the lab.
//!
//! [`Store`] finds images by name and builds what is missing: guest
//! [`kernel`]s, the agent and its [`initramfs`], [`templates`]. [`Cache`] keeps
//! them by a hash of everything that went into them, [`packages`] sees to the
//! Debian packages that building needs, and [`disks`] makes what belongs to one
//! guest only.

pub mod cache;
pub mod command;
mod cpio;
pub mod disks;
pub mod erofs;
pub mod error;
pub mod initramfs;
pub mod kernel;
pub mod lab;
pub mod packages;
pub mod programs;
pub mod progress;
pub mod store;
pub mod templates;

pub use cache::{Cache, Entry, InputHash, Inputs, Kind};
pub use error::{Error, Result};
pub use progress::Progress;
pub use store::{Image, Request, Store};

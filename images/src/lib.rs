//! Builds and caches what guests are made of, and the lab.
//!
//! [`Cache`] keeps images by a hash of everything that went into them;
//! [`packages`] sees to the Debian packages that building needs.

pub mod cache;
pub mod command;
pub mod error;
pub mod packages;
pub mod progress;

pub use cache::{Cache, Entry, InputHash, Inputs, Kind};
pub use error::{Error, Result};
pub use progress::Progress;

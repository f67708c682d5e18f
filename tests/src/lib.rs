//! The harness of the end-to-end tests.
//!
//! The tests are black-box: they run the `insula` command as a user would,
//! and look at what it prints, at its exit code, and at what it leaves
//! behind. Where there is hardware KVM the guests run on it, else `insula`
//! takes them into the lab by itself, and so do the tests: the same commands,
//! the same assertions.

// A test that can't go on says so by a panic.
#![allow(clippy::panic)]

mod at_exit;
mod command;
mod host;
mod program;
mod starts;

pub use command::{Finished, Invocation};
pub use host::{Footprint, GuestName, footprint, host, in_lab, json, kvm_kind};
pub use program::insula;

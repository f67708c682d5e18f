//! End-to-end tests: what a user would do, with real guests on real KVM.

#![allow(clippy::panic, clippy::unwrap_used)]

mod boot;
mod compare;
mod elf;
mod faults;
mod forged;
mod images;
mod lab;
mod partition;
mod pvm;
mod restore;
mod run;
mod snapshot;
mod vector;
mod vps;
mod warm;

//! A minimal KVM virtual machine monitor: one machine, from configuration to
//! exit.
//!
//! [`config::MachineConfig`] says what a machine is made of;
//! [`machine::Machine::build`] makes it (memory, kernel, devices, vCPUs) and
//! [`machine::Machine::run`] runs it to its end. [`probe`] finds out what kind
//! of KVM the host has.

pub mod boot;
pub mod config;
pub mod control;
pub mod devices;
pub mod guest;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod probe;
pub mod pvm;
pub mod snapshot;
pub mod vcpu;

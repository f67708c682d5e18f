//! End-to-end tests: what a user would do, with real guests on real KVM.

mod boot;
mod compare;
mod faults;
mod images;
mod lab;
mod run;
mod vps;

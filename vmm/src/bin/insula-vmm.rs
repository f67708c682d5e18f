//! `insula-vmm`: one virtual machine, one process.
fn main() {}

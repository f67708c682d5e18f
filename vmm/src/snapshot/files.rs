//! The names of a snapshot's files.

/// Everything but memory and disks.
pub const STATE: &str = "state";
/// The memory.
pub const MEMORY: &str = "memory";
/// The directory of the disks' copies.
pub const DISKS: &str = "disks";
/// Which files were found good.
pub const STAMP: &str = "stamp";
/// Which pages are needed first.
pub const WORKING_SET: &str = "working-set";

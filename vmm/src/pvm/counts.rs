//! How often something was repaired.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// How often something was repaired, by all processors of a machine.
#[derive(Debug, Default)]
pub struct Counts {
    syscalls: AtomicU64,
    page_faults: AtomicU64,
    instructions: AtomicU64,
    debug_exits: AtomicU64,
}

/// The counts at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairCounts {
    /// `SYSCALL`s that were delivered, at one exit each.
    pub syscalls: u64,
    /// Page faults that went on to the guest's handler, at one exit each (two
    /// where the handler begins with an instruction that has to be stepped).
    pub page_faults: u64,
    /// Instructions that were carried out for the emulator, at one exit each.
    pub instructions: u64,
    /// Exits at breakpoints, of system calls and page faults together.
    pub debug_exits: u64,
}

impl Counts {
    pub(super) fn syscall(&self) {
        self.syscalls.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn page_fault(&self) {
        self.page_faults.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn instruction(&self) {
        self.instructions.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn debug_exit(&self) {
        self.debug_exits.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts now.
    pub fn read(&self) -> RepairCounts {
        RepairCounts {
            syscalls: self.syscalls.load(Ordering::Relaxed),
            page_faults: self.page_faults.load(Ordering::Relaxed),
            instructions: self.instructions.load(Ordering::Relaxed),
            debug_exits: self.debug_exits.load(Ordering::Relaxed),
        }
    }
}

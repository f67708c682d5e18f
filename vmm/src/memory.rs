//! Guest memory: where it lies, the mapping behind it, and KVM's memory slots.

mod advice;
mod dirty;
pub mod layout;
mod pages;
mod resident;
mod restored;
mod sparse;
mod tracking;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::bitmap::BS;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileSlice,
};

use crate::config::{HugePages, MemSize};

pub use dirty::{DirtyBitmap, PAGE_SIZE};
pub use pages::{Extent, PageSet};
pub use resident::{resident_pages, written_pages};
pub use restored::{Backing, MemoryFile, RestoreMode, prefetch, restore};
pub use sparse::DataRuns;
pub use tracking::DirtyTracking;

/// A guest's memory, mapped into this process.
pub type GuestMemory = GuestMemoryMmap<DirtyBitmap>;

/// A piece of a guest's memory. Writes through it are marked as they are made.
pub type GuestSlice<'a> = VolatileSlice<'a, BS<'a, DirtyBitmap>>;

/// Why there is no guest memory.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The address space could not be reserved.
    #[error(
        "cannot reserve {mib} MiB of address space for the guest's memory: {source}; \
             lower mem_size_mib or raise the limit (ulimit -v)"
    )]
    Map {
        /// Size of the guest's memory, in MiB.
        mib: u32,
        /// What the system said.
        source: vm_memory::mmap::FromRangesError,
    },
    /// KVM refused the memory slot.
    #[error("KVM refuses {size:#x} bytes of guest memory at {address:#x}: {source}")]
    Slot {
        /// Guest-physical address.
        address: u64,
        /// Size, in bytes.
        size: u64,
        /// What the system said.
        source: kvm_ioctls::Error,
    },
    /// KVM does not say what changed.
    #[error("KVM refuses to list the changed pages of memory slot {slot}: {source}")]
    DirtyLog {
        /// The slot.
        slot: u32,
        /// What the system said.
        source: kvm_ioctls::Error,
    },
    /// Memory could not be taken from a snapshot.
    #[error("cannot {what} the snapshot's memory: {source}")]
    Restore {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Reserves a guest's memory. Pages are only taken from the host when they are
/// first touched.
///
/// # Errors
/// [`MemoryError::Map`].
pub fn allocate(size: MemSize, huge_pages: HugePages) -> Result<GuestMemory, MemoryError> {
    // vm-memory maps anonymous, private and with MAP_NORESERVE.
    let memory = GuestMemory::from_ranges(&layout::ram_ranges(size.bytes())).map_err(|source| {
        MemoryError::Map {
            mib: size.get(),
            source,
        }
    })?;
    if huge_pages == HugePages::Transparent {
        advice::huge_pages(&memory);
    }
    Ok(memory)
}

/// Says that `start..end` will be filled at once: where the host has huge
/// pages for who asks, they save faults, the guest's own included. Nothing is
/// wasted that is not at the ends.
pub fn expect_filled(memory: &GuestMemory, start: u64, end: u64) {
    advice::huge_pages_for(memory, start, end);
}

/// Gives a machine its memory: one slot for each range.
///
/// # Errors
/// [`MemoryError::Slot`].
pub fn register(vm: &VmFd, memory: &GuestMemory) -> Result<(), MemoryError> {
    register_with(vm, memory, 0)
}

/// The same with flags for each slot; may be done again with others.
fn register_with(vm: &VmFd, memory: &GuestMemory, flags: u32) -> Result<(), MemoryError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let address = region.start_addr().0;
        let kvm_region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: address,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is one live mapping of that size, which only this
        // slot covers; whoever holds the `VmFd` also holds `memory` for as long
        // as the guest runs.
        unsafe { vm.set_user_memory_region(kvm_region) }.map_err(|source| MemoryError::Slot {
            address,
            size: region.len(),
            source,
        })?;
    }
    Ok(())
}

/// The end of the range of guest memory that begins at address 0.
pub fn low_memory_end(memory: &GuestMemory) -> GuestAddress {
    memory
        .find_region(GuestAddress(0))
        .map_or(GuestAddress(0), |region| {
            GuestAddress(region.start_addr().0 + region.len())
        })
}

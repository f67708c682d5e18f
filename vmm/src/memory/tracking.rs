//! Which pages of a machine's memory change, whoever changes them: KVM's dirty
//! log for the guest, [`DirtyBitmap`](super::DirtyBitmap) for the devices.

use kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES;
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{GuestMemory, MemoryError, PAGE_SIZE, PageSet, register_with};

/// The pages that have changed since a point in time.
#[derive(Debug)]
pub struct DirtyTracking {
    changed: PageSet,
}

impl DirtyTracking {
    /// Starts: from now on changes count. No processor may be running, and no
    /// device working.
    ///
    /// # Errors
    /// [`MemoryError::Slot`].
    pub fn start(vm: &VmFd, memory: &GuestMemory) -> Result<Self, MemoryError> {
        for region in memory.iter() {
            (**region).bitmap().start();
        }
        register_with(vm, memory, KVM_MEM_LOG_DIRTY_PAGES)?;
        let mut tracking = Self {
            changed: PageSet::none(0),
        };
        // What was marked before, when tracking was on already.
        tracking.collect(vm, memory)?;
        tracking.forget();
        Ok(tracking)
    }

    /// Asks KVM and the devices for what has changed since the last call, and
    /// adds it to [`Self::changed`]. No processor may be running.
    ///
    /// # Errors
    /// [`MemoryError::DirtyLog`].
    pub fn collect(&mut self, vm: &VmFd, memory: &GuestMemory) -> Result<(), MemoryError> {
        let total: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
        if self.changed == PageSet::default() {
            self.changed = PageSet::none(total / PAGE_SIZE);
        }
        let mut first = 0;
        for (slot, region) in (0..).zip(memory.iter()) {
            let log = vm
                .get_dirty_log(slot, region.len() as usize)
                .map_err(|source| MemoryError::DirtyLog { slot, source })?;
            self.changed.insert_words(first, &log);
            self.changed
                .insert_words(first, &(**region).bitmap().take());
            first += region.len() / PAGE_SIZE;
        }
        Ok(())
    }

    /// The pages that have changed and were not forgotten, as far as they were
    /// collected, counted through the memory's ranges in order.
    pub fn changed(&self) -> &PageSet {
        &self.changed
    }

    /// What was collected is saved: changes count anew.
    pub fn forget(&mut self) {
        self.changed = PageSet::default();
    }
}

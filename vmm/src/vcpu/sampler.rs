//! Where virtual processors are: a profile of a guest by its instruction
//! pointers, taken whenever a processor is kicked out of guest mode.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// Addresses that are told apart. A guest that is everywhere gets no more of
/// our memory than this.
const MAX_ADDRESSES: usize = 1 << 16;

/// Where a guest's processors were found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Samples of all processors together.
    pub samples: u64,
    /// Samples at each instruction pointer, by address. Samples beyond the
    /// addresses that are told apart are only in the sum.
    pub addresses: BTreeMap<u64, u64>,
}

impl Profile {
    fn count(&mut self, address: u64) {
        self.samples += 1;
        if let Some(count) = self.addresses.get_mut(&address) {
            *count += 1;
        } else if self.addresses.len() < MAX_ADDRESSES {
            self.addresses.insert(address, 1);
        }
    }
}

/// Takes samples while it is on. Clones are the same sampler.
#[derive(Debug, Clone, Default)]
pub struct Sampler(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    is_on: AtomicBool,
    profile: Mutex<Profile>,
}

impl Sampler {
    /// Whether samples are taken.
    pub fn is_on(&self) -> bool {
        self.0.is_on.load(Ordering::Relaxed)
    }

    /// Starts a new profile; `false` if one is being taken already.
    pub fn start(&self) -> bool {
        !self.0.is_on.swap(true, Ordering::Relaxed)
    }

    /// A processor is at this address.
    pub fn count(&self, address: u64) {
        self.profile().count(address);
    }

    /// Ends the profile.
    pub fn finish(&self) -> Profile {
        self.0.is_on.store(false, Ordering::Relaxed);
        std::mem::take(&mut *self.profile())
    }

    fn profile(&self) -> MutexGuard<'_, Profile> {
        self.0
            .profile
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_taken_by_one_at_a_time() {
        let sampler = Sampler::default();
        assert!(sampler.start());
        assert!(!sampler.clone().start());
        sampler.count(7);
        sampler.count(7);
        let profile = sampler.finish();
        assert_eq!((profile.samples, profile.addresses[&7]), (2, 2));
        assert!(!sampler.is_on());
        assert!(sampler.start());
        assert_eq!(sampler.finish(), Profile::default());
    }

    #[test]
    fn a_guest_that_is_everywhere_takes_no_more_memory() {
        let mut profile = Profile::default();
        for address in 0..MAX_ADDRESSES as u64 + 10 {
            profile.count(address);
        }
        assert_eq!(profile.addresses.len(), MAX_ADDRESSES);
        assert_eq!(profile.samples, MAX_ADDRESSES as u64 + 10);
    }
}

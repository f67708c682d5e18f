//! Warm starts: guests that are restored from a snapshot of one that was
//! freshly booted, as the same guest would be.
//!
//! The snapshots are kept by a hash of all that a fresh guest depends on (see
//! [`key`]), so one of another kernel, agent, machine or host is never found;
//! [`cache`] says where.

mod cache;
mod key;

use std::os::fd::BorrowedFd;
use std::time::Instant;

use guest_agent::protocol::Name;
use images::InputHash;
use vmm::guest::{
    Guest, GuestError, GuestSpec, RestoreSpec, RunRoot, Size, SnapshotOptions, find_vmm,
};

use crate::output::Output;

pub(crate) use cache::{WarmCache, WarmRecord};

/// The warm start of one kind of guest, which there is or which is to be.
#[derive(Debug)]
pub(crate) struct WarmStart<'a> {
    cache: WarmCache,
    key: InputHash,
    output: &'a Output,
}

impl<'a> WarmStart<'a> {
    /// That of such guests: `spec` without a data disk, and the size of the
    /// data disk that would be made for it. None where there can be none, in
    /// which case guests boot.
    pub(crate) fn of(spec: &GuestSpec, disk: Option<Size>, output: &'a Output) -> Option<Self> {
        let found = WarmCache::user().and_then(|cache| {
            let hashes = cache.hashes();
            let key = key::of(spec, disk, &find_vmm(), &key::Host::this(), &hashes)?;
            Ok(Self { cache, key, output })
        });
        match found {
            Ok(warm) => Some(warm),
            Err(failure) => {
                output.detail(format!("no warm start: {failure}"));
                None
            }
        }
    }

    /// The guest, restored, if there is a snapshot. One that cannot be
    /// restored is removed: then, too, there is no guest.
    ///
    /// # Errors
    /// When the name is taken, or somebody gave up waiting.
    pub(crate) fn restore(
        &self,
        name: &Name,
        spec: &GuestSpec,
        interrupt: BorrowedFd<'_>,
    ) -> Result<Option<Guest>, GuestError> {
        let Some(entry) = self.cache.find(&self.key) else {
            return Ok(None);
        };
        let snapshot = entry.snapshot();
        self.output.detail(format!(
            "restoring guest {name} from its warm start {}",
            snapshot.display()
        ));
        let restore = RestoreSpec {
            snapshot,
            hostname: spec.hostname.clone(),
            ephemeral: spec.ephemeral,
            // The cache may drop it at any time.
            passing: true,
            ..RestoreSpec::default()
        };
        let reservation = RunRoot::for_user()?.reserve(name)?;
        match reservation.restore(&restore, Some(interrupt)) {
            Ok(guest) => Ok(Some(guest)),
            Err(error @ GuestError::Interrupted { .. }) => Err(error),
            Err(error) => {
                self.output
                    .detail(format!("removing that warm start: {error}"));
                drop(entry);
                self.cache.remove(&self.key);
                Ok(None)
            }
        }
    }

    /// Keeps a snapshot of a guest that has just booted and did nothing else
    /// yet. The guest goes on, and does so when no snapshot comes of it.
    pub(crate) fn keep(&self, guest: &Guest) {
        let started = Instant::now();
        let kept = self.cache.fill(&self.key, |directory| {
            let taken = guest
                .dir()
                .snapshot(directory, SnapshotOptions::default())?;
            Ok(taken.memory_bytes)
        });
        self.output.detail(match kept {
            Ok(Some(bytes)) => format!(
                "kept a snapshot of it for warm starts: {} of memory, in {} ms",
                Size::new(bytes),
                started.elapsed().as_millis()
            ),
            Ok(None) => "somebody else keeps a snapshot of such a guest".to_owned(),
            Err(failure) => format!("no snapshot for warm starts was kept: {failure}"),
        });
    }
}

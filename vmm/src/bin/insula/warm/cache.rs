//! Where snapshots for warm starts are kept.
//!
//! ```text
//! warm/<key>/lock       shared by those who restore from it, exclusive while it
//!                       is made or removed; its time is that of the last use
//! warm/<key>/snapshot/  as `insula guest snapshot` makes it
//! warm/.gone-<key>-…    being removed
//! ```
//!
//! It is in the cache of images; where that is sealed, in the lab, in a place
//! of its own. Nobody ever waits for a lock: who does not get one does without
//! a warm start.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use images::cache::size_on_disk;
use images::{Cache, InputHash};
use rustix::fs::{FlockOperation, flock, statvfs};
use rustix::io::Errno;
use vmm::guest::GuestRecord;

use crate::failure::Failure;

/// Where it is beside a cache of images that is sealed.
const BESIDE_SEALED: &str = "/var/cache/insula";
const WARM: &str = "warm";
const LOCK: &str = "lock";
const SNAPSHOT: &str = "snapshot";
const GONE: &str = ".gone-";

/// Most snapshots that are kept, and the bytes that they may take together.
const MOST: usize = 16;
const MOST_BYTES: u64 = 2 << 30;
/// Room that the file system must have for another one to be made: several
/// times what a fresh guest's takes.
const ROOM: u64 = 512 << 20;

/// The snapshots of a user.
#[derive(Debug, Clone)]
pub(crate) struct WarmCache {
    root: PathBuf,
}

/// A snapshot that stays as long as this value.
#[derive(Debug)]
pub(super) struct Entry {
    dir: PathBuf,
    _lock: File,
}

/// A snapshot in a listing.
#[derive(Debug)]
pub(crate) struct WarmRecord {
    /// Its directory, whose name is its key.
    pub(crate) dir: PathBuf,
    /// What the guest was made of, in words.
    pub(crate) about: String,
    /// What it takes on disk.
    pub(crate) bytes: u64,
    /// When a guest was last restored from it, or it was made.
    pub(crate) last_used: SystemTime,
}

impl WarmCache {
    /// The user's.
    pub(crate) fn user() -> Result<Self, Failure> {
        let images = Cache::user()?;
        let base = match images.sealed()? {
            Some(_) => Path::new(BESIDE_SEALED),
            None => images.root(),
        };
        Ok(Self {
            root: base.join(WARM),
        })
    }

    /// Knows the hashes of files that were read before.
    pub(super) fn hashes(&self) -> Cache {
        Cache::at(self.root.parent().unwrap_or(&self.root))
    }

    /// The snapshot with that key, if there is one.
    pub(super) fn find(&self, key: &InputHash) -> Option<Entry> {
        let dir = self.dir(key);
        let lock = lock(&dir, FlockOperation::NonBlockingLockShared).ok()??;
        if !dir.join(SNAPSHOT).is_dir() {
            return None;
        }
        // It only decides which one goes first.
        let _ = lock.set_modified(SystemTime::now());
        Some(Entry { dir, _lock: lock })
    }

    /// Has `make` make the snapshot with that key, and removes others if there
    /// are too many. Nothing happens if somebody else makes it, or it is there.
    ///
    /// # Errors
    /// Those of `make`, or that there is no room. Nothing of it is left then.
    pub(super) fn fill<T>(
        &self,
        key: &InputHash,
        make: impl FnOnce(&Path) -> Result<T, Failure>,
    ) -> Result<Option<T>, Failure> {
        let dir = self.dir(key);
        let failed =
            |error: io::Error| Failure::new(format!("cannot make {}: {error}", dir.display()));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(failed)?;
        // Also waits for nobody who is restoring from one: then it is there.
        let Some(lock) = lock(&dir, FlockOperation::NonBlockingLockExclusive).map_err(failed)?
        else {
            return Ok(None);
        };
        let snapshot = dir.join(SNAPSHOT);
        if snapshot.is_dir() {
            return Ok(None);
        }
        let made = self.check_room().and_then(|()| make(&snapshot));
        if made.is_err() {
            self.discard(&dir);
        }
        drop(lock);
        self.trim(&dir, MOST, MOST_BYTES);
        made.map(Some)
    }

    /// Removes the snapshot with that key, unless somebody uses it.
    pub(super) fn remove(&self, key: &InputHash) {
        self.evict(&self.dir(key));
    }

    /// All that there are, the last used first.
    pub(crate) fn list(&self) -> Vec<WarmRecord> {
        let mut records: Vec<_> = self
            .dirs()
            .into_iter()
            .filter(|dir| dir.join(SNAPSHOT).is_dir())
            .map(|dir| WarmRecord {
                about: about(&dir.join(SNAPSHOT)),
                bytes: size_on_disk(&dir),
                last_used: last_used(&dir),
                dir,
            })
            .collect();
        records.sort_by_key(|record| std::cmp::Reverse(record.last_used));
        records
    }

    /// Removes all that nobody uses; what was removed, with its bytes, and what
    /// is left.
    pub(crate) fn prune(&self) -> (Vec<(PathBuf, u64)>, Vec<PathBuf>) {
        let (mut removed, mut left) = (Vec::new(), Vec::new());
        for dir in self.dirs() {
            let bytes = size_on_disk(&dir);
            if self.evict(&dir) {
                removed.push((dir, bytes));
            } else {
                left.push(dir);
            }
        }
        self.sweep();
        // Not while something is in it.
        let _ = fs::remove_dir(&self.root);
        (removed, left)
    }

    fn dir(&self, key: &InputHash) -> PathBuf {
        self.root.join(key.as_str())
    }

    fn entries(&self) -> impl Iterator<Item = (PathBuf, String)> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some((entry.path(), entry.file_name().into_string().ok()?)))
    }

    fn dirs(&self) -> Vec<PathBuf> {
        let mut dirs: Vec<_> = self
            .entries()
            .filter(|(_, name)| InputHash::try_from(name.clone()).is_ok())
            .map(|(dir, _)| dir)
            .collect();
        dirs.sort();
        dirs
    }

    fn check_room(&self) -> Result<(), Failure> {
        let free = statvfs(&self.root)
            .map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        if free < ROOM {
            return Err(Failure::new(format!(
                "only {} MiB are free at {}",
                free >> 20,
                self.root.display()
            )));
        }
        Ok(())
    }

    /// Removes the longest unused beyond so many or so many bytes, but not
    /// `newest`.
    fn trim(&self, newest: &Path, most: usize, most_bytes: u64) {
        self.sweep();
        let mut dirs = self.dirs();
        dirs.sort_by_key(|dir| (dir != newest, std::cmp::Reverse(last_used(dir))));
        let mut bytes = 0u64;
        for (index, dir) in dirs.iter().enumerate() {
            bytes = bytes.saturating_add(size_on_disk(dir));
            if index > 0 && (index >= most || bytes > most_bytes) {
                self.evict(dir);
            }
        }
    }

    /// Removes one that nobody uses; whether it is gone.
    fn evict(&self, dir: &Path) -> bool {
        match lock(dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(Some(_lock)) => self.discard(dir),
            Ok(None) => false,
            Err(_) => !dir.exists(),
        }
    }

    /// Removes one whose exclusive lock is held: at once for everybody else.
    fn discard(&self, dir: &Path) -> bool {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let gone = self
            .root
            .join(format!("{GONE}{name}-{}", std::process::id()));
        // What cannot be removed now, the next one sweeps.
        fs::rename(dir, &gone).is_ok() && fs::remove_dir_all(&gone).is_ok()
    }

    /// Removes what others began to remove. They may be at it still.
    fn sweep(&self) {
        for (path, name) in self.entries() {
            if name.starts_with(GONE) {
                let _ = fs::remove_dir_all(path);
            }
        }
    }
}

impl Entry {
    /// The snapshot's directory.
    pub(super) fn snapshot(&self) -> PathBuf {
        self.dir.join(SNAPSHOT)
    }
}

/// Takes the lock of a directory if nobody is in the way. It is that of the
/// directory that is there now, not of one that is being removed.
fn lock(dir: &Path, operation: FlockOperation) -> io::Result<Option<File>> {
    let path = dir.join(LOCK);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)?;
    match flock(&file, operation) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let (ours, there) = (file.metadata()?, fs::metadata(&path)?);
    Ok(((ours.dev(), ours.ino()) == (there.dev(), there.ino())).then_some(file))
}

fn last_used(dir: &Path) -> SystemTime {
    fs::metadata(dir.join(LOCK))
        .and_then(|meta| meta.modified())
        .unwrap_or(UNIX_EPOCH)
}

/// What is known of the guest, in words.
fn about(snapshot: &Path) -> String {
    let record = fs::read(snapshot.join("guest.json")).ok();
    let record: Option<GuestRecord> = record.and_then(|json| serde_json::from_slice(&json).ok());
    match record {
        None => "a guest".to_owned(),
        Some(record) => format!(
            "{}{}, {} vCPU, {} MiB",
            record.templates.join(" "),
            record.machine_root.map_or("", |_| " as root"),
            record.vcpus,
            record.memory_bytes >> 20
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use images::Inputs;

    use super::*;

    fn key(name: &str) -> InputHash {
        Inputs::new().text("name", name).hash()
    }

    fn make(directory: &Path) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::new(error);
        fs::create_dir(directory).map_err(failed)?;
        fs::write(directory.join("state"), [1; 8192]).map_err(failed)
    }

    #[test]
    fn one_is_made_once_and_stays_while_it_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let cache = WarmCache {
            root: dir.path().join("warm"),
        };
        let web = key("web");
        assert!(cache.find(&web).is_none());
        assert!(cache.list().is_empty());
        assert!(
            cache
                .fill(&web, |_| Err::<(), _>(Failure::new("no")))
                .is_err()
        );
        assert_eq!(cache.entries().count(), 0, "something is left");
        let made = cache.fill(&web, |directory| {
            // Others find that it is being made, and do without.
            assert!(cache.find(&web).is_none());
            assert!(matches!(cache.fill(&web, make), Ok(None)));
            make(directory)
        });
        assert!(matches!(made, Ok(Some(()))));
        let used = cache.find(&web).unwrap();
        assert!(used.snapshot().join("state").is_file());
        assert!(cache.find(&web).is_some(), "it can be used twice");
        assert!(matches!(cache.fill(&web, make), Ok(None)));
        cache.remove(&web);
        assert_eq!(cache.prune().1.len(), 1);
        assert_eq!(cache.list().len(), 1);
        drop(used);
        let (removed, left) = cache.prune();
        assert!(removed.len() == 1 && removed[0].1 >= 8192 && left.is_empty());
        assert!(!cache.root.exists());
    }

    #[test]
    fn the_longest_unused_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let cache = WarmCache {
            root: dir.path().join("warm"),
        };
        let keys = ["a", "b", "c", "d"].map(key);
        for (age, key) in keys.iter().enumerate() {
            cache.fill(key, make).unwrap();
            let used = SystemTime::now() - Duration::from_secs(100 * (10 - age as u64));
            let lock = cache.dir(key).join(LOCK);
            let lock = File::options().write(true).open(lock).unwrap();
            lock.set_modified(used).unwrap();
        }
        drop(cache.find(&keys[0]).unwrap());
        fs::create_dir(cache.root.join(".gone-x-1")).unwrap();
        let kept = |cache: &WarmCache| keys.clone().map(|key| cache.dir(&key).exists());
        cache.trim(&cache.dir(&keys[1]), 3, u64::MAX);
        assert_eq!(kept(&cache), [true, true, false, true]);
        assert_eq!(cache.entries().count(), 3);
        // By size: the newest stays, however large.
        cache.trim(&cache.dir(&keys[1]), 3, 1);
        assert_eq!(kept(&cache), [false, true, false, false]);
    }
}

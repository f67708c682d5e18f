//! What the lab keeps in the cache: snapshots, and the disks of labs that run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::START_LOCK;
use super::place::Place;
use super::shape::{Shape, instance_name};
use crate::cache::{Cache, Pruned, list_if_there, size_on_disk};
use crate::error::{IoContext, Result};

/// What a snapshot's directory is called while it is made; its key follows.
pub(super) const UNFINISHED: &str = ".tmp-";
/// What the name of a snapshot's lock starts with; its key follows.
pub(super) const LOCK: &str = "lab-snapshot-";
/// A snapshot's file that says what it is of.
pub(super) const SHAPE: &str = "shape.json";
/// The file beside a running lab's disks that names the directory of its instance.
const OWNER: &str = "instance";
/// How many snapshots of an instance are kept, the last used ones: branches of a
/// checkout have agents of their own.
const KEPT: usize = 2;

/// A snapshot in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Its directory, which is named by the hash of what it was made from.
    pub dir: PathBuf,
    /// The size of the emulated host.
    pub shape: Shape,
    /// The bytes that it takes on disk.
    pub bytes: u64,
    /// When a lab was last started from it.
    pub last_used: SystemTime,
}

/// The directory of all snapshots.
pub(super) fn parent(cache: &Cache) -> PathBuf {
    cache.root().join("lab/snapshots")
}

/// Writes what a snapshot is of.
pub(super) fn describe(dir: &Path, shape: &Shape) -> Result<()> {
    let path = dir.join(SHAPE);
    let text = serde_json::to_vec(shape).map_err(std::io::Error::from);
    text.and_then(|text| fs::write(&path, text))
        .at("write", &path)
}

/// Notes whose disks these are.
pub(super) fn claim(scratch: &Path, place: &Place) -> Result<()> {
    let path = scratch.join(OWNER);
    fs::write(&path, place.dir().as_os_str().as_encoded_bytes()).at("write", &path)
}

/// All complete snapshots, by instance, the last used first.
///
/// # Errors
/// When their directory cannot be listed.
pub fn snapshots(cache: &Cache) -> Result<Vec<SnapshotRecord>> {
    let mut records: Vec<_> = list_if_there(&parent(cache))?
        .into_iter()
        .filter(|dir| !is_unfinished(dir))
        .filter_map(record)
        .collect();
    records.sort_by_key(|r| (r.shape.instance(), std::cmp::Reverse(r.last_used)));
    Ok(records)
}

fn record(dir: PathBuf) -> Option<SnapshotRecord> {
    let shape = serde_json::from_slice(&fs::read(dir.join(SHAPE)).ok()?).ok()?;
    let token = fs::metadata(dir.join("token")).ok()?;
    Some(SnapshotRecord {
        shape,
        bytes: size_on_disk(&dir),
        last_used: token.modified().ok()?,
        dir,
    })
}

fn is_unfinished(dir: &Path) -> bool {
    let name = dir.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes())
}

/// Removes what interrupted boots left of the snapshot `key`, whose lock is held.
pub(super) fn remove_unfinished(parent: &Path, key: &str) {
    let prefix = format!("{UNFINISHED}{key}-");
    for dir in list_if_there(parent).unwrap_or_default() {
        let name = dir.file_name().unwrap_or_default();
        if name.as_encoded_bytes().starts_with(prefix.as_bytes()) {
            // The next boot tries again.
            let _ = fs::remove_dir_all(dir);
        }
    }
}

/// Removes all but `new` and the snapshots that were last used. A lab that runs from
/// one keeps its files open.
pub(super) fn keep_last(cache: &Cache, new: &Path) -> Result<()> {
    remove_old(cache, Some(new), KEPT, &mut Pruned::default())
}

fn remove_old(cache: &Cache, new: Option<&Path>, keep: usize, pruned: &mut Pruned) -> Result<()> {
    let mut of_instance = (instance_name(false), 0);
    for record in snapshots(cache)? {
        let instance = record.shape.instance();
        if of_instance.0 != instance {
            of_instance = (instance, 0);
        }
        of_instance.1 += 1;
        if of_instance.1 > keep && new != Some(record.dir.as_path()) {
            pruned.remove(&record.dir)?;
        }
    }
    Ok(())
}

/// Removes snapshots that are not needed any more, and the disks of labs that were
/// killed; with `everything`, all snapshots. What is being made or runs stays.
pub(crate) fn prune(cache: &Cache, everything: bool, pruned: &mut Pruned) -> Result<()> {
    for dir in list_if_there(&cache.root().join("lab/running"))? {
        if runs(&dir, cache.root()) {
            if everything {
                pruned
                    .kept
                    .push((dir, "is of a lab that runs; 'insula lab stop' ends it"));
            }
        } else {
            pruned.remove(&dir)?;
        }
    }
    for dir in list_if_there(&parent(cache))? {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let whole = !is_unfinished(&dir) && record(dir.clone()).is_some();
        if whole && !everything {
            continue;
        }
        let name = name.strip_prefix(UNFINISHED).unwrap_or(&name);
        let key = name.split('-').next().unwrap_or_default();
        match cache.try_lock(&format!("{LOCK}{key}"))? {
            Some(_lock) => pruned.remove(&dir)?,
            None => pruned.kept.push((dir.clone(), "is being made")),
        }
    }
    remove_old(cache, None, 1, pruned)
}

/// Whether the lab whose disks are in `scratch` runs or is being started.
fn runs(scratch: &Path, cache: &Path) -> bool {
    let named = fs::read_to_string(scratch.join(OWNER)).ok();
    let places = match named {
        Some(dir) => vec![Place::at(dir.into())],
        // Before the file is written, a start has got no further than the directory.
        None => [false, true]
            .map(|icount| Place::of(instance_name(icount)))
            .into_iter()
            .filter(|place| place.scratch(cache) == scratch)
            .collect(),
    };
    places.iter().any(|place| {
        let start = File::open(place.file(START_LOCK));
        place.alive() || (start.is_ok() && matches!(place.try_lock(START_LOCK, false), Ok(None)))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn snapshot(cache: &Cache, key: &str, icount: bool, age: u64) -> PathBuf {
        let dir = parent(cache).join(key);
        fs::create_dir_all(&dir).unwrap();
        let shape = Shape {
            icount,
            cpus: 1,
            memory_mib: 2048,
        };
        describe(&dir, &shape).unwrap();
        let token = File::create(dir.join("token")).unwrap();
        let time = SystemTime::now() - Duration::from_secs(age * 100);
        token.set_modified(time).unwrap();
        dir
    }

    fn left(cache: &Cache) -> Vec<String> {
        let dirs = list_if_there(&parent(cache)).unwrap();
        let name = |dir: PathBuf| dir.file_name().unwrap().to_str().unwrap().to_owned();
        dirs.into_iter().map(name).collect()
    }

    #[test]
    fn the_last_used_snapshots_of_each_instance_stay() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        for (age, key) in ["a", "b", "c", "d"].iter().enumerate() {
            snapshot(&cache, key, false, age as u64);
        }
        snapshot(&cache, "i", true, 9);
        let new = parent(&cache).join("d");
        keep_last(&cache, &new).unwrap();
        assert_eq!(left(&cache), ["a", "b", "d", "i"]);
        prune(&cache, false, &mut Pruned::default()).unwrap();
        assert_eq!(left(&cache), ["a", "i"]);
    }

    #[test]
    fn unfinished_snapshots_go_unless_they_are_being_made() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        snapshot(&cache, "a", false, 0);
        let unfinished = parent(&cache).join(".tmp-k1-x7");
        fs::create_dir_all(&unfinished).unwrap();
        let boot = cache.lock("lab-snapshot-k1", || {}).unwrap();
        let mut pruned = Pruned::default();
        prune(&cache, false, &mut pruned).unwrap();
        assert!(unfinished.exists() && pruned.kept.len() == 1);
        drop(boot);
        prune(&cache, false, &mut Pruned::default()).unwrap();
        assert_eq!(left(&cache), ["a"]);
    }

    #[test]
    fn the_disks_of_a_lab_go_when_it_is_dead() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache"));
        let place = Place::at(dir.path().join("default"));
        place.create().unwrap();
        let scratch = place.scratch(cache.root());
        fs::create_dir_all(&scratch).unwrap();
        claim(&scratch, &place).unwrap();
        for lock in [START_LOCK, "qemu.lock"] {
            let _held = place.lock(lock, false, Duration::ZERO, "x").unwrap();
            let mut pruned = Pruned::default();
            prune(&cache, true, &mut pruned).unwrap();
            assert!(scratch.exists() && pruned.kept.len() == 1, "{lock}");
        }
        prune(&cache, false, &mut Pruned::default()).unwrap();
        assert!(!scratch.exists());
    }
}

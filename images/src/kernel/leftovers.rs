//! What kernel builds leave in the cache's work directory.
//!
//! A build that succeeds removes its own directory (up to 0.6 GB). One that was
//! interrupted leaves it, so that the next build of the same inputs goes on from
//! there; and the unpacked source (0.9 GB) stays, as unpacking it takes a minute.

use std::path::Path;

use super::{BUILD_DIR, BUILD_LOCK, source};
use crate::cache::{Cache, Kind, Pruned, list_if_there};
use crate::error::Result;

/// Removes the directories of interrupted builds, and sources of which no installed
/// package is; with `everything`, all sources. What is being built stays.
pub(crate) fn prune(cache: &Cache, everything: bool, pruned: &mut Pruned) -> Result<()> {
    let current = if everything {
        None
    } else {
        source::current(cache)?
    };
    prune_but(cache, current.as_deref(), pruned)
}

fn prune_but(cache: &Cache, current: Option<&Path>, pruned: &mut Pruned) -> Result<()> {
    let work = cache.root().join("work");
    for dir in list_if_there(&work)? {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let Some(build) = name.strip_prefix(BUILD_DIR) else {
            continue;
        };
        // The builder's own, and the one that a make keeps that has outlived it.
        let (_, hash) = build.rsplit_once('-').unwrap_or(("", build));
        let builder = cache.try_lock(&format!("{}-{hash}", Kind::Kernel.dir_name()))?;
        let make = cache.try_lock(&format!("{BUILD_LOCK}{build}"))?;
        if builder.is_some() && make.is_some() {
            pruned.remove(&dir)?;
        } else {
            pruned.kept.push((dir.clone(), "is being built in"));
        }
    }
    for dir in list_if_there(&work.join("source"))? {
        if current == Some(dir.as_path()) {
            continue;
        }
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let short = name.rsplit('-').next().unwrap_or_default();
        // Builds take their own lock first and this one then: those that come now wait
        // here and find the source gone, and those that have it are seen.
        let unpacking = cache.try_lock(&format!("{}{short}", source::LOCK))?;
        if unpacking.is_none() || cache.is_locked(BUILD_LOCK)? {
            pruned.kept.push((dir.clone(), "is being built from"));
            continue;
        }
        pruned.remove(&dir)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn interrupted_builds_and_old_sources_go_and_what_is_in_use_stays() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let work = |name: &str| {
            let dir = cache.work_dir(name).unwrap();
            fs::write(dir.join("object.o"), "x").unwrap();
            dir
        };
        let old_build = work("kernel-hardware-0123");
        let orphan = work("kernel-yardstick-4567");
        let old_source = work("source/linux-old");
        let source = work("source/linux-new");
        let unpacked_half = work("source/.tmp-linux-older");
        let target = work("cargo-target");
        let orphans_make = cache.lock("build-yardstick-4567", || {}).unwrap();

        let mut pruned = Pruned::default();
        prune_but(&cache, Some(&source), &mut pruned).unwrap();
        assert_eq!(pruned.removed, [old_build]);
        assert!(orphan.exists() && old_source.exists() && target.exists());
        assert_eq!(pruned.kept.len(), 3, "{pruned:?}");

        drop(orphans_make);
        let mut pruned = Pruned::default();
        prune_but(&cache, Some(&source), &mut pruned).unwrap();
        assert_eq!(pruned.removed, [orphan, unpacked_half, old_source]);
        assert!(source.exists() && target.exists() && pruned.kept.is_empty());
    }
}

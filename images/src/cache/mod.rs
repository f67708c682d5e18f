//! The image cache: built once, found by a hash of all inputs.
//!
//! ```text
//! $INSULA_CACHE | $XDG_CACHE_HOME/insula | ~/.cache/insula
//!   <kind>/<hash>/…              the files of one image
//!   <kind>/<hash>/manifest.json  what it is, and size and SHA-256 of each file
//!   <kind>/.tmp-<hash>-…         a build under way; renamed when complete
//!   .locks/<kind>-<hash>.lock    held (flock) while building
//!   .stamps/                     which files were hashed, and as what
//!   work/                        unpacked sources and build directories
//!   sealed.json                  only in a sealed cache: name -> hash
//! ```
//!
//! An entry appears by `rename(2)` and never changes after that, so readers
//! need no lock. A *sealed* cache is one that is carried to where nothing can be
//! built (the lab): entries are found by name, and a lack is an error.

mod entry;
mod inputs;
mod lock;
mod maintain;
mod sealed;
mod stamps;

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext, Result};
use crate::progress::Progress;

pub use entry::{Entry, FileRecord, Kind, MANIFEST_VERSION, Manifest};
pub use inputs::{InputHash, Inputs};
pub use lock::Lock;
pub(crate) use maintain::list_if_there;
pub use maintain::size_on_disk;
pub use maintain::{Finding, Pruned};
pub use sealed::SealedIndex;

/// A cache directory.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The user's cache: `$INSULA_CACHE`, else `$XDG_CACHE_HOME/insula`, else
    /// `~/.cache/insula`. Nothing is created yet.
    ///
    /// # Errors
    /// [`Error::NoCacheDirectory`] when none of the variables is set.
    pub fn user() -> Result<Self> {
        let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let root = if let Some(root) = from("INSULA_CACHE") {
            PathBuf::from(root)
        } else if let Some(base) = from("XDG_CACHE_HOME") {
            Path::new(&base).join("insula")
        } else if let Some(home) = from("HOME") {
            Path::new(&home).join(".cache/insula")
        } else {
            return Err(Error::NoCacheDirectory);
        };
        Ok(Self::at(root))
    }

    /// The cache in `root`, which need not exist yet.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        // Builders run programs in other directories: a relative path would
        // mean something else to them.
        let root = std::path::absolute(&root).unwrap_or(root);
        Self { root }
    }

    /// The cache's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A directory for unpacked sources and incremental builds, which is not an
    /// image; created if need be. [`crate::Store::prune`] may remove it.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn work_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.root.join("work").join(name);
        fs::create_dir_all(&dir).at("create the directory", &dir)?;
        Ok(dir)
    }

    /// The entry of these inputs, if it has been built. Sizes are compared with
    /// the manifest, contents are not (see [`Cache::check`]).
    ///
    /// # Errors
    /// When the manifest is there but cannot be read.
    pub fn find(&self, kind: Kind, hash: &InputHash) -> Result<Option<Entry>> {
        let dir = self.entry_dir(kind, hash);
        if !dir.join(entry::MANIFEST_FILE).exists() {
            return Ok(None);
        }
        let entry = Entry::open(&dir)?;
        Ok(entry.sizes_match().then_some(entry))
    }

    /// The entry of these inputs; `build` makes it if it is not there.
    ///
    /// `build` gets an empty directory and fills it. Two callers with the same
    /// inputs wait for each other, also across processes; if `build` fails or the
    /// process dies, nothing is left behind that looks like an image.
    /// In a sealed cache the entry is found by `kind` and `name`, whatever the inputs.
    /// What is found is checked by its hash (see [`Cache::check`]).
    ///
    /// # Errors
    /// Those of `build`, of the file system, [`Error::Damaged`], and
    /// [`Error::NotInSealedCache`].
    pub fn ensure(
        &self,
        kind: Kind,
        name: &str,
        inputs: &Inputs,
        progress: &Progress,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Entry> {
        if let Some(index) = self.sealed()? {
            let entry = self.find_sealed(&index, kind, name)?;
            self.check(&entry)?;
            return Ok(entry);
        }
        let hash = inputs.hash();
        if let Some(entry) = self.find(kind, &hash)? {
            entry.mark_used();
            self.check(&entry)?;
            return Ok(entry);
        }
        let lock_name = format!("{}-{hash}", kind.dir_name());
        let _lock = self.lock(&lock_name, || {
            progress.say(&format!("waiting for another build of {kind} '{name}'"));
        })?;
        // Somebody else may have built it while we waited.
        if let Some(entry) = self.find(kind, &hash)? {
            return Ok(entry);
        }
        self.remove_stale_builds(kind, &hash)?;
        let parent = self.root.join(kind.dir_name());
        fs::create_dir_all(&parent).at("create the directory", &parent)?;
        let temporary = tempfile::Builder::new()
            .prefix(&format!(".tmp-{hash}-"))
            .tempdir_in(&parent)
            .at("create a temporary directory in", &parent)?;
        let started = std::time::Instant::now();
        build(temporary.path()).map_err(|error| self.full_disk(error))?;
        Manifest::write(
            temporary.path(),
            kind,
            name,
            &hash,
            inputs,
            started.elapsed(),
        )?;
        let dir = self.entry_dir(kind, &hash);
        // What is there failed the check of `find`: it is not an image.
        remove_dir_if_there(&dir)?;
        let built = temporary.keep();
        if let Err(source) = fs::rename(&built, &dir) {
            // Best effort: the next build of this entry clears it as well.
            let _ = fs::remove_dir_all(&built);
            return Err(Error::Io {
                action: "move the finished image to",
                path: dir,
                source,
            });
        }
        Entry::open(&dir)
    }

    /// Takes the lock called `name` for as long as the result lives; `waiting`
    /// is called once if somebody else holds it.
    ///
    /// # Errors
    /// When the lock file cannot be created or locked.
    pub fn lock(&self, name: &str, waiting: impl FnOnce()) -> Result<Lock> {
        let dir = self.root.join(".locks");
        fs::create_dir_all(&dir).at("create the directory", &dir)?;
        Lock::take(&dir.join(format!("{name}.lock")), waiting)
    }

    /// Programs report a full disk in words only; which disk, and the cure, are ours
    /// to add.
    fn full_disk(&self, error: Error) -> Error {
        match error {
            Error::Command { output, .. } if output.contains("No space left on device") => {
                let available = |dir: &PathBuf| {
                    rustix::fs::statvfs(dir)
                        .map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
                };
                // Compilers and linkers write to the temporary directory as well.
                let dirs = [self.root.clone(), std::env::temp_dir()];
                let [ours, _] = &dirs;
                Error::Io {
                    action: "write to",
                    path: dirs
                        .iter()
                        .min_by_key(|dir| available(dir))
                        .unwrap_or(ours)
                        .clone(),
                    source: std::io::ErrorKind::StorageFull.into(),
                }
            }
            other => other,
        }
    }

    fn entry_dir(&self, kind: Kind, hash: &InputHash) -> PathBuf {
        self.root.join(kind.dir_name()).join(hash.as_str())
    }
}

fn remove_dir_if_there(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).at("remove", dir),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;

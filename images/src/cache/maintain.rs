//! Looking after a cache: list, verify, prune.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::lock::Lock;
use super::{Cache, Entry, InputHash, Kind, remove_dir_if_there};
use crate::error::{Error, IoContext, Result};

/// What [`Cache::verify`] found about one entry.
#[derive(Debug)]
pub struct Finding {
    /// The entry's directory.
    pub dir: PathBuf,
    /// The entry, if its manifest could be read.
    pub entry: Option<Entry>,
    /// What is wrong with it; `None`: nothing.
    pub problem: Option<Error>,
}

/// What pruning removed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// The directories that are gone.
    pub removed: Vec<PathBuf>,
    /// The bytes that they took on disk.
    pub bytes: u64,
    /// What would have gone but is in use, and by what.
    pub kept: Vec<(PathBuf, &'static str)>,
}

impl Cache {
    /// All complete entries, by kind, name, and last use (newest first). Entries
    /// whose manifest cannot be read are left to [`Cache::verify`].
    ///
    /// # Errors
    /// When a directory cannot be listed.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for kind in Kind::ALL {
            let dirs = self.entry_dirs(kind)?;
            let mut of_kind: Vec<_> = dirs
                .iter()
                .filter_map(|dir| Entry::open(dir).ok())
                .collect();
            of_kind.sort_by(|a, b| {
                let by_name = a.manifest().name.cmp(&b.manifest().name);
                by_name.then_with(|| b.last_used().cmp(&a.last_used()))
            });
            entries.append(&mut of_kind);
        }
        Ok(entries)
    }

    /// Hashes every file of every entry again, whatever the stamps say.
    ///
    /// # Errors
    /// When a directory cannot be listed; what is wrong with an entry is in its finding.
    pub fn verify(&self) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        for kind in Kind::ALL {
            for dir in self.entry_dirs(kind)? {
                findings.push(match Entry::open(&dir) {
                    Err(problem) => Finding {
                        dir,
                        entry: None,
                        problem: Some(problem),
                    },
                    Ok(entry) => {
                        let problem = self.check_anew(&entry).err();
                        Finding {
                            dir,
                            entry: Some(entry),
                            problem,
                        }
                    }
                });
            }
        }
        Ok(findings)
    }

    /// Removes entries that are not needed any more: builds that were interrupted,
    /// damaged entries, and of each kind and name all but the one used last; with
    /// `everything`, all entries. What is being built right now stays.
    /// [`crate::Store::prune`] does the rest.
    ///
    /// # Errors
    /// When something cannot be listed or removed, and in a sealed cache.
    pub fn prune(&self, everything: bool) -> Result<Pruned> {
        if self.sealed()?.is_some() {
            return Err(Error::Invalid {
                what: "pruning",
                reason: format!(
                    "the image cache at {} is sealed: it goes when the lab is stopped",
                    self.root().display()
                ),
            });
        }
        let mut pruned = Pruned::default();
        if everything {
            for kind in Kind::ALL {
                for dir in self.entry_dirs(kind)? {
                    pruned.remove(&dir)?;
                }
            }
        } else {
            for finding in self.verify()? {
                if finding.problem.is_some() {
                    pruned.remove(&finding.dir)?;
                }
            }
            let mut seen = BTreeSet::new();
            for entry in self.list()? {
                let m = entry.manifest();
                if !seen.insert((m.kind, m.name.clone())) {
                    pruned.remove(entry.dir())?;
                }
            }
        }
        for kind in Kind::ALL {
            for dir in self.temporary_dirs(kind)? {
                let Some(_lock) = self.lock_of_build(kind, &dir)? else {
                    pruned.kept.push((dir, "is being built"));
                    continue;
                };
                pruned.remove(&dir)?;
            }
        }
        Ok(pruned)
    }

    /// Removes what is left when nothing is in the cache: work directories, stamps,
    /// locks and empty directories. It all stays while anything is being built.
    pub(crate) fn prune_frame(&self, pruned: &mut Pruned) -> Result<()> {
        let locks = self.root().join(".locks");
        let mut held = Vec::new();
        for path in list_if_there(&locks)? {
            let Some(lock) = Lock::try_take(&path)? else {
                let work = self.root().join("work");
                pruned.kept.push((work, "is being built in"));
                return Ok(());
            };
            held.push((path, lock));
        }
        pruned.remove(&self.root().join("work"))?;
        self.forget_stamps()?;
        // Their holder removes them; who waited for one sees that and makes a new one.
        for (path, _lock) in &held {
            fs::remove_file(path).at("remove", path)?;
        }
        let kinds = Kind::ALL.map(Kind::dir_name);
        for name in kinds
            .into_iter()
            .chain([".locks", "lab/running", "lab/snapshots", "lab", "."])
        {
            let dir = self.root().join(name);
            // Where it fails, somebody has put something in: it is not empty any more.
            let _ = fs::remove_dir(dir.components().as_path());
        }
        Ok(())
    }

    /// Takes the lock called `name` unless somebody holds it.
    pub(crate) fn try_lock(&self, name: &str) -> Result<Option<Lock>> {
        let dir = self.root().join(".locks");
        fs::create_dir_all(&dir).at("create the directory", &dir)?;
        Lock::try_take(&dir.join(format!("{name}.lock")))
    }

    /// Whether somebody holds a lock whose name starts with `prefix`.
    pub(crate) fn is_locked(&self, prefix: &str) -> Result<bool> {
        for path in list_if_there(&self.root().join(".locks"))? {
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            if name.starts_with(prefix.as_bytes()) && Lock::try_take(&path)?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes what interrupted builds of this entry left. Its lock must be held.
    pub(super) fn remove_stale_builds(&self, kind: Kind, hash: &InputHash) -> Result<()> {
        let prefix = format!(".tmp-{hash}-");
        for dir in self.temporary_dirs(kind)? {
            if dir
                .file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with(&prefix))
            {
                remove_dir_if_there(&dir)?;
            }
        }
        Ok(())
    }

    /// The lock of whoever builds in this temporary directory, if nobody does.
    fn lock_of_build(&self, kind: Kind, dir: &Path) -> Result<Option<Lock>> {
        let name = dir
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        let rest = name.strip_prefix(".tmp-").unwrap_or(&name);
        let (hash, _) = rest.split_once('-').unwrap_or((rest, ""));
        self.try_lock(&format!("{kind}-{hash}"))
    }

    fn entry_dirs(&self, kind: Kind) -> Result<Vec<PathBuf>> {
        self.dirs(kind, |name| !name.starts_with('.'))
    }

    fn temporary_dirs(&self, kind: Kind) -> Result<Vec<PathBuf>> {
        self.dirs(kind, |name| name.starts_with(".tmp-"))
    }

    fn dirs(&self, kind: Kind, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
        let mut dirs = list_if_there(&self.root().join(kind.dir_name()))?;
        dirs.retain(|dir| wanted(&dir.file_name().unwrap_or_default().to_string_lossy()));
        Ok(dirs)
    }
}

impl Pruned {
    /// Removes a directory if it is there.
    pub(crate) fn remove(&mut self, dir: &Path) -> Result<()> {
        if dir.exists() {
            self.bytes = self.bytes.saturating_add(size_on_disk(dir));
            remove_dir_if_there(dir)?;
            self.removed.push(dir.to_path_buf());
        }
        Ok(())
    }
}

/// What is in a directory, in order; nothing if it is not there.
pub(crate) fn list_if_there(dir: &Path) -> Result<Vec<PathBuf>> {
    let items = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.at("list", dir)?,
    };
    let mut paths = Vec::new();
    for item in items {
        paths.push(item.at("list", dir)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// The bytes that the files below `dir` take, as far as they can be seen: the holes
/// of sparse files (the lab's memory and disks) are not counted.
pub fn size_on_disk(dir: &Path) -> u64 {
    let Ok(items) = fs::read_dir(dir) else {
        return 0;
    };
    items
        .flatten()
        .filter_map(|item| item.metadata().ok().map(|meta| (item, meta)))
        .map(|(item, meta)| {
            if meta.is_dir() {
                size_on_disk(&item.path())
            } else {
                meta.blocks().saturating_mul(512)
            }
        })
        .sum()
}

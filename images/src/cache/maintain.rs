//! Looking after a cache: list, verify, prune.

use std::collections::BTreeSet;
use std::fs;
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

/// What [`Cache::prune`] removed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// The directories that are gone.
    pub removed: Vec<PathBuf>,
    /// The bytes they took.
    pub bytes: u64,
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
        let stamps = self.root().join(".stamps");
        if self.sealed()?.is_none() {
            remove_dir_if_there(&stamps)?;
        }
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
                        let problem = self.check(&entry).err();
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

    /// Removes what is not needed any more: builds that were interrupted, damaged
    /// entries, and of each kind and name all entries but the one used last. With
    /// `everything`, all entries, sources and build directories. What is being
    /// built right now stays.
    ///
    /// # Errors
    /// When something cannot be listed or removed.
    pub fn prune(&self, everything: bool) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        for finding in self.verify()? {
            if finding.problem.is_some() || everything {
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
        for kind in Kind::ALL {
            for dir in self.temporary_dirs(kind)? {
                if self.is_stale(kind, &dir)? {
                    pruned.remove(&dir)?;
                }
            }
        }
        if everything {
            pruned.remove(&self.root().join("work"))?;
        }
        Ok(pruned)
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

    /// Whether nobody is building in this temporary directory.
    fn is_stale(&self, kind: Kind, dir: &Path) -> Result<bool> {
        let name = dir
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        let Some((hash, _)) = name
            .strip_prefix(".tmp-")
            .and_then(|rest| rest.split_once('-'))
        else {
            return Ok(true);
        };
        let lock = self
            .root()
            .join(".locks")
            .join(format!("{kind}-{hash}.lock"));
        if !lock.exists() {
            return Ok(true);
        }
        Ok(Lock::try_take(&lock)?.is_some())
    }

    fn entry_dirs(&self, kind: Kind) -> Result<Vec<PathBuf>> {
        self.dirs(kind, |name| !name.starts_with('.'))
    }

    fn temporary_dirs(&self, kind: Kind) -> Result<Vec<PathBuf>> {
        self.dirs(kind, |name| name.starts_with(".tmp-"))
    }

    fn dirs(&self, kind: Kind, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
        let parent = self.root().join(kind.dir_name());
        let items = match fs::read_dir(&parent) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.at("list", &parent)?,
        };
        let mut dirs = Vec::new();
        for item in items {
            let item = item.at("list", &parent)?;
            if wanted(&item.file_name().to_string_lossy()) {
                dirs.push(item.path());
            }
        }
        dirs.sort();
        Ok(dirs)
    }
}

impl Pruned {
    fn remove(&mut self, dir: &Path) -> Result<()> {
        if dir.exists() {
            self.bytes = self.bytes.saturating_add(size_of_tree(dir));
            remove_dir_if_there(dir)?;
            self.removed.push(dir.to_path_buf());
        }
        Ok(())
    }
}

/// The bytes of the files below `dir`, as far as they can be seen.
fn size_of_tree(dir: &Path) -> u64 {
    let Ok(items) = fs::read_dir(dir) else {
        return 0;
    };
    items
        .flatten()
        .filter_map(|item| item.metadata().ok().map(|meta| (item, meta)))
        .map(|(item, meta)| {
            if meta.is_dir() {
                size_of_tree(&item.path())
            } else {
                meta.len()
            }
        })
        .sum()
}

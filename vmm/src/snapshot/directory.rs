//! A snapshot's directory comes to be whole or not at all: it is made beside
//! its place under a name of this process, and put there when it is complete.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::error::SnapshotError;
use super::files::STATE;

/// Between the name of a snapshot and the number of the process that makes it.
const PARTIAL: &str = ".partial-";

/// A directory that is being made. It goes away with this value, unless it was
/// [put in its place](Self::commit).
#[derive(Debug)]
pub(super) struct PartialDir {
    target: PathBuf,
    partial: PathBuf,
    is_committed: bool,
}

impl PartialDir {
    /// Begins one for `target`, where there may be a snapshot already. What
    /// processes left there that were killed is removed.
    pub(super) fn create(target: &Path) -> Result<Self, SnapshotError> {
        let name = target.file_name().ok_or_else(|| {
            let source = io::Error::new(ErrorKind::InvalidInput, "it has no name");
            SnapshotError::io("make a snapshot at", target)(source)
        })?;
        let parent = parent_of(target);
        let parent = fs::canonicalize(parent).map_err(SnapshotError::io(
            "find the directory for the snapshot,",
            parent,
        ))?;
        let target = parent.join(name);
        check_replaceable(&target)?;
        let name = name.to_string_lossy().into_owned();
        remove_leftovers(&parent, &name);
        let partial = parent.join(format!("{name}{PARTIAL}{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&partial)
            .map_err(SnapshotError::io("make", &partial))?;
        Ok(Self {
            target,
            partial,
            is_committed: false,
        })
    }

    /// Where to put the files.
    pub(super) fn path(&self) -> &Path {
        &self.partial
    }

    /// Where it will be.
    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// Puts the directory, whose files are on disk, in its place. The snapshot
    /// that was there is there until then, and removed after.
    pub(super) fn commit(mut self) -> Result<(), SnapshotError> {
        sync_dir(&self.partial)?;
        let rename = |flags| renameat_with(CWD, &self.partial, CWD, &self.target, flags);
        match rename(RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST | Errno::NOTEMPTY) => {
                check_replaceable(&self.target)?;
                rename(RenameFlags::EXCHANGE).map_err(SnapshotError::errno(
                    "replace the snapshot at",
                    &self.target,
                ))?;
                // Now the old one has the temporary name; if it cannot be
                // removed now, the next snapshot does.
                let _ = fs::remove_dir_all(&self.partial);
            }
            Err(error) => {
                return Err(SnapshotError::errno("put the snapshot at", &self.target)(
                    error,
                ));
            }
        }
        self.is_committed = true;
        sync_dir(parent_of(&self.target))
    }
}

impl Drop for PartialDir {
    fn drop(&mut self) {
        if !self.is_committed {
            // Whoever comes next tries again.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Only snapshots and empty directories are replaced.
fn check_replaceable(target: &Path) -> Result<(), SnapshotError> {
    if target.join(STATE).is_file() {
        return Ok(());
    }
    let is_empty = match fs::read_dir(target) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => match error.kind() {
            ErrorKind::NotFound => true,
            ErrorKind::NotADirectory => false,
            _ => return Err(SnapshotError::io("look into", target)(error)),
        },
    };
    if is_empty {
        return Ok(());
    }
    Err(SnapshotError::Occupied {
        path: target.to_owned(),
    })
}

/// Removes what was begun by processes that are no more, or by an earlier one
/// with our number. Others may do the same at the same time.
fn remove_leftovers(parent: &Path, name: &str) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    let prefix = format!("{name}{PARTIAL}");
    for entry in entries.flatten() {
        let file_name = entry.file_name();
        let pid = file_name
            .to_str()
            .and_then(|name| name.strip_prefix(&prefix))
            .and_then(|pid| pid.parse().ok());
        let Some(pid) = pid else {
            continue;
        };
        if pid == std::process::id() as i32 || !is_alive(pid) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn is_alive(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

/// Waits until the entries of a directory are on disk.
pub(super) fn sync_dir(path: &Path) -> Result<(), SnapshotError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(SnapshotError::io("write to the disk", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn state_of(dir: &Path) -> String {
        fs::read_to_string(dir.join(STATE)).unwrap()
    }

    #[test]
    fn the_old_one_is_there_until_the_new_one_is() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("snap");
        for content in ["one", "two"] {
            let partial = PartialDir::create(&target).unwrap();
            fs::write(partial.path().join(STATE), content).unwrap();
            if content == "two" {
                assert_eq!(state_of(&target), "one");
            }
            partial.commit().unwrap();
            assert_eq!(state_of(&target), content);
            assert_eq!(entries(root.path()), ["snap"]);
        }
        let given_up = PartialDir::create(&target).unwrap();
        fs::write(given_up.path().join(STATE), "three").unwrap();
        assert_eq!(entries(root.path()).len(), 2);
        drop(given_up);
        assert_eq!(entries(root.path()), ["snap"]);
        assert_eq!(state_of(&target), "two");
    }

    #[test]
    fn what_the_dead_left_is_removed_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("snap");
        // No process has the largest number, and init lives.
        for name in [
            "snap.partial-2147483647",
            "snap.partial-1",
            "snap.partial-x",
            "other.partial-2147483647",
        ] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        drop(PartialDir::create(&target).unwrap());
        assert_eq!(
            entries(root.path()),
            [
                "other.partial-2147483647",
                "snap.partial-1",
                "snap.partial-x"
            ]
        );
    }

    #[test]
    fn only_snapshots_are_replaced() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("home");
        fs::create_dir(&target).unwrap();
        PartialDir::create(&target).unwrap().commit().unwrap();
        fs::write(target.join("letter"), "x").unwrap();
        assert!(matches!(
            PartialDir::create(&target),
            Err(SnapshotError::Occupied { .. })
        ));
        let file = target.join("letter");
        assert!(matches!(
            PartialDir::create(&file),
            Err(SnapshotError::Occupied { .. })
        ));
        assert!(PartialDir::create(&root.path().join("none/snap")).is_err());
        assert!(PartialDir::create(Path::new("/")).is_err());
        assert_eq!(entries(root.path()), ["home"]);
    }
}

//! Data disks: empty ext4 file systems with project quotas, one per guest.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use crate::command;
use crate::error::{Error, IoContext, Result};
use crate::packages;

/// The smallest data disk: an ext4 with its journal and room for a few VPSs.
pub const MIN_SIZE: u64 = 16 << 20;

/// The largest data disk: 16 TiB, which ext4 has with blocks of 4 KiB.
pub const MAX_SIZE: u64 = 16 << 40;

/// Creates a sparse file of `size` bytes at `path` with an empty ext4 on it, and
/// nothing if that fails. The path must not exist yet.
///
/// # Errors
/// [`Error::Invalid`] for a size out of range, [`Error::MissingPackages`] without
/// e2fsprogs, and those of the file system.
pub fn create_ext4(path: &Path, size: u64, label: &str) -> Result<()> {
    if !(MIN_SIZE..=MAX_SIZE).contains(&size) {
        return Err(Error::Invalid {
            what: "size of a data disk",
            reason: format!("{size} bytes is not between 16 MiB and 16 TiB"),
        });
    }
    let mkfs = packages::tool("mkfs.ext4", "e2fsprogs")?;
    let file = File::options()
        .write(true)
        .create_new(true)
        .open(path)
        .at("create", path)?;
    let made = file
        .set_len(size)
        .at("set the size of", path)
        .and_then(|()| {
            drop(file);
            format(&mkfs, path, label)
        });
    if made.is_err() {
        // The error of the first failure is the one to report.
        let _ = std::fs::remove_file(path);
    }
    made
}

fn format(mkfs: &Path, path: &Path, label: &str) -> Result<()> {
    let mut mkfs = Command::new(mkfs);
    // Project quotas are accounted from the start: switching them on later means
    // checking the whole file system.
    mkfs.args(["-q", "-F", "-m", "0", "-O", "quota,project"]);
    // A new sparse file reads as zeros, which mkfs sees by itself ("discard" is its
    // default) and notes in every group: neither it nor the guest's kernel later
    // has to fill the inode tables. The journal it would fill, if it were not told.
    mkfs.args(["-E", "quotatype=prjquota,lazy_journal_init=1"]);
    mkfs.args(["-b", "4096", "-L", label])
        .arg(path)
        .env("LC_ALL", "C");
    command::run(&mut mkfs).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_disk_is_sparse_and_has_project_quotas() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.ext4");
        create_ext4(&path, 1 << 30, "data").unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), 1 << 30);
        assert!(
            meta.blocks() * 512 < 8 << 20,
            "{} bytes used",
            meta.blocks() * 512
        );
        let mut dump = Command::new(packages::tool("dumpe2fs", "e2fsprogs").unwrap());
        let text = command::run(dump.arg("-h").arg(&path)).unwrap();
        let features = text
            .lines()
            .find(|l| l.starts_with("Filesystem features:"))
            .unwrap();
        for feature in ["has_journal", "quota", "project", "extent"] {
            assert!(features.contains(feature), "{features}");
        }
        // Left to the guest's kernel, zeroing the tables would fill the file.
        let text =
            command::run(Command::new(packages::tool("dumpe2fs", "e2fsprogs").unwrap()).arg(&path))
                .unwrap();
        let groups: Vec<_> = text.lines().filter(|l| l.starts_with("Group ")).collect();
        assert!(
            groups
                .iter()
                .filter(|l| l.contains("ITABLE_ZEROED"))
                .count()
                >= groups.len() - 1
        );
        // Never over an existing file.
        assert!(create_ext4(&path, 1 << 30, "data").is_err());
    }

    #[test]
    fn sizes_out_of_range_are_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.ext4");
        for size in [0, MIN_SIZE - 1, MAX_SIZE + 1] {
            let message = create_ext4(&path, size, "data").unwrap_err().to_string();
            assert!(message.contains("16 MiB"), "{message}");
        }
        assert!(!path.exists());
    }
}

//! Remembers which files were hashed, so that the next command need not.
//!
//! A stamp is good for as long as the file is the same inode with the same length
//! and change time; every write changes the latter. File systems count that time in
//! ticks of some milliseconds, so that a file that has changed just now gets no stamp:
//! it may change again within the same tick.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::inputs::{sha256_bytes, sha256_file};
use super::{Cache, Entry, remove_dir_if_there};
use crate::error::{IoContext, Result};

/// Longer than the tick of any kernel's clock (10 ms) and of the file systems in use.
const TICK: Duration = Duration::from_millis(20);

impl Cache {
    /// The SHA-256 of a file, from its stamp if it has not changed since.
    ///
    /// # Errors
    /// When the file cannot be read. That a stamp cannot be written is no error.
    pub fn file_sha256(&self, path: &Path) -> Result<String> {
        let meta = fs::metadata(path).at("examine", path)?;
        if let Ok(text) = fs::read_to_string(self.stamp_of(path))
            && let Some((sha256, of)) = text.split_once(' ')
            && of == identity(path, &meta)
        {
            return Ok(sha256.to_owned());
        }
        self.hash_and_stamp(path)
    }

    /// The SHA-256 of a file, read now whatever its stamp says, with a new stamp.
    fn hash_and_stamp(&self, path: &Path) -> Result<String> {
        // From before it is read: what is written meanwhile makes the stamp void.
        let meta = fs::metadata(path).at("examine", path)?;
        let sha256 = sha256_file(path)?;
        let stamp = self.stamp_of(path);
        if !is_settled(&meta) {
            // An older one would go on vouching for what was not read here.
            let _ = fs::remove_file(&stamp);
            return Ok(sha256);
        }
        // Best effort: a read-only cache only costs hashing again. The rename keeps
        // readers from seeing half a stamp.
        let dir = self.stamps_dir();
        let _ = fs::create_dir_all(&dir);
        let text = format!("{sha256} {}", identity(path, &meta));
        if let Ok(mut file) = tempfile::NamedTempFile::new_in(&dir)
            && std::io::Write::write_all(&mut file, text.as_bytes()).is_ok()
        {
            let _ = file.persist(&stamp);
        }
        Ok(sha256)
    }

    /// Forgets which files were hashed. Others may be hashing meanwhile: they
    /// find an empty directory, or make a new one.
    pub(super) fn forget_stamps(&self) -> Result<()> {
        let away = self
            .root()
            .join(format!(".stamps-gone-{}", std::process::id()));
        match fs::rename(self.stamps_dir(), &away) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e).at("rename", &self.stamps_dir()),
            Ok(()) => remove_dir_if_there(&away),
        }
    }

    fn stamps_dir(&self) -> PathBuf {
        self.root().join(".stamps")
    }

    fn stamp_of(&self, path: &Path) -> PathBuf {
        self.stamps_dir()
            .join(sha256_bytes(path.as_os_str().as_encoded_bytes()))
    }

    /// Checks the content of every file of an entry against its manifest, reading
    /// only files that changed since they were last checked.
    ///
    /// # Errors
    /// [`crate::Error::Damaged`] with the first file that is missing or different.
    pub fn check(&self, entry: &Entry) -> Result<()> {
        self.check_by(entry, |path| self.file_sha256(path))
    }

    /// As [`Cache::check`], reading every file whatever the stamps say.
    ///
    /// # Errors
    /// As [`Cache::check`].
    pub fn check_anew(&self, entry: &Entry) -> Result<()> {
        self.check_by(entry, |path| self.hash_and_stamp(path))
    }

    fn check_by(&self, entry: &Entry, hash: impl Fn(&Path) -> Result<String>) -> Result<()> {
        for record in &entry.manifest().files {
            let path = entry.path(&record.path);
            let problem = match fs::metadata(&path) {
                Err(e) => Some(format!("{}: {e}", path.display())),
                Ok(meta) if meta.len() != record.size => Some(format!(
                    "{} has {} bytes instead of {}",
                    path.display(),
                    meta.len(),
                    record.size
                )),
                Ok(_) if hash(&path)? != record.sha256 => Some(format!(
                    "the content of {} has changed (SHA-256)",
                    path.display()
                )),
                Ok(_) => None,
            };
            if let Some(problem) = problem {
                return Err(entry.damaged(problem, self.sealed()?.is_some()));
            }
        }
        Ok(())
    }
}

/// What changes when a file is written, replaced or moved.
fn identity(path: &Path, meta: &fs::Metadata) -> String {
    format!(
        "{} {}:{} {} {}.{}",
        path.display(),
        meta.dev(),
        meta.ino(),
        meta.len(),
        meta.ctime(),
        meta.ctime_nsec()
    )
}

/// Whether a write from now on would show in the change time.
fn is_settled(meta: &fs::Metadata) -> bool {
    let nanoseconds = u32::try_from(meta.ctime_nsec()).unwrap_or(0);
    let changed =
        u64::try_from(meta.ctime()).map_or(Duration::ZERO, |s| Duration::new(s, nanoseconds));
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.saturating_sub(changed) > TICK
}

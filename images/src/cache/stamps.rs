//! Remembers which files were hashed, so that the next command need not.
//!
//! A stamp is good for as long as the file is the same inode with the same length
//! and change time; every write changes the latter. File systems count that time in
//! ticks of some milliseconds, so that a file that has changed just now gets no stamp:
//! it may change again within the same tick.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::inputs::{sha256_bytes, sha256_file};
use super::{Cache, Entry};
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
        let identity = format!(
            "{} {}:{} {} {}.{}",
            path.display(),
            meta.dev(),
            meta.ino(),
            meta.len(),
            meta.ctime(),
            meta.ctime_nsec()
        );
        let dir = self.root().join(".stamps");
        let name = sha256_bytes(path.as_os_str().as_encoded_bytes());
        let stamp = dir.join(name);
        if let Ok(text) = fs::read_to_string(&stamp)
            && let Some((sha256, of)) = text.split_once(' ')
            && of == identity
        {
            return Ok(sha256.to_owned());
        }
        let sha256 = sha256_file(path)?;
        if !is_settled(&meta) {
            return Ok(sha256);
        }
        // Best effort: a read-only cache only costs hashing again. The rename keeps
        // readers from seeing half a stamp.
        let _ = fs::create_dir_all(&dir);
        if let Ok(mut file) = tempfile::NamedTempFile::new_in(&dir)
            && std::io::Write::write_all(&mut file, format!("{sha256} {identity}").as_bytes())
                .is_ok()
        {
            let _ = file.persist(&stamp);
        }
        Ok(sha256)
    }

    /// Checks the content of every file of an entry against its manifest, reading
    /// only files that changed since they were last checked.
    ///
    /// # Errors
    /// [`crate::Error::Damaged`] with the first file that is missing or different.
    pub fn check(&self, entry: &Entry) -> Result<()> {
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
                Ok(_) if self.file_sha256(&path)? != record.sha256 => Some(format!(
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

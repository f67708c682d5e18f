//! The identity of the machine's boot, as machine sessions see it.
//!
//! The kernel's stays the same in every copy of a guest. So sessions find a
//! file in its place, which has what the kernel says until a host says that
//! this is a copy.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::vps::identity::{Identity, KERNEL_BOOT_ID};

/// The file, in the agent's own file system.
pub(super) const FILE: &str = "/run/boot-id";

/// This is a copy of a guest that had made no file: the kernel's is another's.
static IS_COPY: AtomicBool = AtomicBool::new(false);

/// Makes the file, when machine sessions are about to be, if it is not there.
pub(super) fn make() -> io::Result<()> {
    let path = Path::new(FILE);
    if path.exists() {
        return Ok(());
    }
    if IS_COPY.load(Ordering::Relaxed) {
        return write(path, true, &text()?);
    }
    let kernels = fs::read(Path::new("/proc").join(KERNEL_BOOT_ID))?;
    write(path, true, &kernels)
}

/// Gives this copy of a guest another one: now if it has machine sessions, else
/// when it gets them, to lose no time at its start.
///
/// # Errors
/// The file can't be written.
pub(crate) fn renew() -> io::Result<()> {
    IS_COPY.store(true, Ordering::Relaxed);
    match write(Path::new(FILE), false, &text()?) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

fn text() -> io::Result<Vec<u8>> {
    let identity = Identity::draw().map_err(io::Error::from)?;
    Ok(format!("{}\n", identity.text()).into_bytes())
}

/// In place, since it may be mounted elsewhere, and of the same length, so that
/// nobody ever reads a part of it.
fn write(path: &Path, create: bool, text: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.create(create).truncate(false).write(true);
    options.mode(0o444).open(path)?.write_all_at(text, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_over_in_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("boot-id");
        let one = text().unwrap();
        let missing = write(&path, false, &one).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        write(&path, true, &one).unwrap();
        let open = fs::File::open(&path).unwrap();
        let new = text().unwrap();
        write(&path, false, &new).unwrap();
        assert_eq!(io::read_to_string(open).unwrap().into_bytes(), new);
    }
}

//! Copies of disk images: by reference where the file system can, else as
//! sparse as the original.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{copy_file_range, ioctl_ficlone};
use rustix::io::Errno;

use super::digest::{BUFFER, PAGE, is_zero};
use super::error::SnapshotError;
use crate::memory::DataRuns;

/// Makes `to`, which must not exist, a copy of `from`: a file or a block
/// device, opened at whatever path, to which nobody writes meanwhile. Moves the
/// position of `from`. What is in the copy need not be on disk yet.
///
/// # Errors
/// [`SnapshotError::NoRoom`] or [`SnapshotError::Io`]; the copy is removed then.
pub fn copy_disk(from: &File, to: &Path) -> Result<(), SnapshotError> {
    let copy = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(SnapshotError::io("make", to))?;
    let copied = match ioctl_ficlone(&copy, from) {
        Ok(()) => Ok(()),
        // Another file system, one without references, or no regular file.
        Err(_) => copy_sparsely(from, &copy),
    };
    copied.map_err(|source| {
        // What is left is of no use to anybody.
        let _ = std::fs::remove_file(to);
        SnapshotError::io("copy a disk to", to)(source)
    })
}

fn copy_sparsely(from: &File, to: &File) -> io::Result<()> {
    let runs = DataRuns::new(from)?;
    to.set_len(runs.file_len())?;
    let mut in_kernel = true;
    for run in runs {
        let run = run?;
        let mut offset = run.start;
        while in_kernel && offset < run.end {
            let (mut source, mut target) = (offset, offset);
            let count = (run.end - offset) as usize;
            match copy_file_range(from, Some(&mut source), to, Some(&mut target), count) {
                Ok(0) | Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    in_kernel = false;
                }
                Ok(copied) => offset += copied as u64,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        copy_bytes(from, to, offset, run.end)?;
    }
    Ok(())
}

fn copy_bytes(from: &File, to: &File, mut offset: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER.min((end - offset) as usize)];
    while offset < end {
        let count = (end - offset).min(buffer.len() as u64) as usize;
        let bytes = &mut buffer[..count];
        from.read_exact_at(bytes, offset)?;
        // A block device does not say where it is empty.
        for (page, at) in bytes.chunks(PAGE).zip((offset..).step_by(PAGE)) {
            if !is_zero(page) {
                to.write_all_at(page, at)?;
            }
        }
        offset += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::digest;

    #[test]
    fn a_copy_holds_the_same_and_is_no_longer_the_original() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&from)
            .unwrap();
        file.set_len(1 << 24).unwrap();
        for at in [0, 5 << 20, (1 << 24) - 512] {
            file.write_all_at(&[7; 512], at).unwrap();
        }
        copy_disk(&file, &to).unwrap();
        let copy = File::open(&to).unwrap();
        let content = digest::of_file(&file, &from).unwrap();
        assert_eq!(digest::of_file(&copy, &to).unwrap(), content);
        file.write_all_at(&[8], 0).unwrap();
        assert_eq!(digest::of_file(&copy, &to).unwrap(), content);
        assert!(copy_disk(&file, &to).is_err(), "it is there already");
        assert_eq!(digest::of_file(&copy, &to).unwrap(), content);
    }

    #[test]
    fn bytes_are_copied_where_the_kernel_does_not() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let bytes: Vec<u8> = (0..3 * BUFFER as u64 + 5)
            .map(|at| if at / 10_000 % 2 == 0 { 0 } else { at as u8 })
            .collect();
        from.write_all_at(&bytes, 0).unwrap();
        to.set_len(bytes.len() as u64).unwrap();
        copy_bytes(&from, &to, 0, bytes.len() as u64).unwrap();
        let path = Path::new("disk");
        assert_eq!(
            digest::of_file(&from, path).unwrap(),
            digest::of_file(&to, path).unwrap()
        );
    }
}

//! Paths inside of a VPS's root: resolved one way only, so that nothing that
//! a tenant or a template put there leads outside.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Opens the directory `name`, directly below `parent`, as a place to mount
/// on; makes it when it is missing. A symbolic link, a mount or anything else
/// in its place is an error.
pub(crate) fn mount_point(parent: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let open = || {
        rustix::fs::openat2(
            &parent,
            name,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
        )
    };
    match open() {
        Err(Errno::NOENT) => {
            rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
            open()
        }
        result => result,
    }
}

/// Reads a file of a tenant's, following links inside of `root` only. `None`
/// when it is missing, not a regular file, or larger than `limit` bytes.
pub(crate) fn read_file(root: impl AsFd, path: &str, limit: usize) -> Option<Vec<u8>> {
    let file = rustix::fs::openat2(
        &root,
        path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
    .ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return None;
    }
    let mut text = Vec::new();
    let mut part = [0u8; 4096];
    loop {
        let n = rustix::io::read(&file, &mut part).ok()?;
        if n == 0 {
            return Some(text);
        }
        text.extend_from_slice(part.get(..n)?);
        if text.len() > limit {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn dir() -> (tempfile::TempDir, std::fs::File) {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::open(dir.path()).unwrap();
        (dir, file)
    }

    #[test]
    fn a_mount_point_is_made_but_never_a_link() {
        let (path, root) = dir();
        mount_point(&root, "proc").unwrap();
        assert!(path.path().join("proc").is_dir());
        symlink("/", path.path().join("sys")).unwrap();
        assert!(mount_point(&root, "sys").is_err());
        std::fs::write(path.path().join("dev"), "").unwrap();
        assert!(mount_point(&root, "dev").is_err());
    }

    #[test]
    fn files_are_read_inside_the_root_only() {
        let (path, root) = dir();
        std::fs::create_dir(path.path().join("etc")).unwrap();
        std::fs::write(path.path().join("etc/real"), "inside").unwrap();
        symlink("/etc/real", path.path().join("etc/passwd")).unwrap();
        assert_eq!(read_file(&root, "etc/passwd", 100).unwrap(), b"inside");
        assert_eq!(read_file(&root, "etc/passwd", 3), None);
        symlink(
            "../../../../../../../../etc/hostname",
            path.path().join("out"),
        )
        .unwrap();
        assert_eq!(read_file(&root, "out", 100), None);
        assert_eq!(read_file(&root, "etc", 100), None);
    }
}

//! Files of the machine: written through a temporary name, read in pieces.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fchmod, fstat, mkdirat, renameat, unlinkat};
use rustix::io::Errno;

use super::outbox::Outbox;
use crate::machine::{MachineRoot, open_in};
use crate::protocol::{Code, Failure, frame};

/// A file that is being written. Dropped before it is done, it leaves nothing.
#[derive(Debug)]
pub(crate) struct Writing {
    directory: OwnedFd,
    file: OwnedFd,
    temporary: String,
    name: String,
    path: String,
    done: bool,
}

/// A file that is being read.
#[derive(Debug)]
pub(crate) struct Reading {
    file: OwnedFd,
    path: String,
}

fn failed(what: &str, path: &str) -> impl FnOnce(Errno) -> Failure {
    let message = format!("cannot {what} {path}");
    move |errno| Failure {
        code: match errno {
            Errno::NOENT | Errno::NOTDIR => Code::NotFound,
            Errno::NOSPC | Errno::DQUOT | Errno::NOMEM | Errno::MFILE => Code::Exhausted,
            Errno::ACCESS | Errno::PERM | Errno::ROFS => Code::Denied,
            Errno::ISDIR | Errno::LOOP | Errno::NAMETOOLONG => Code::Invalid,
            _ => Code::Internal,
        },
        message: format!("{message}: {errno}"),
        errno: Some(errno.raw_os_error()),
    }
}

fn invalid(message: String) -> Failure {
    Failure {
        code: Code::Invalid,
        message,
        errno: None,
    }
}

fn check_path(path: &str) -> Result<(), Failure> {
    if path.starts_with('/') && !path.contains('\0') {
        Ok(())
    } else {
        Err(invalid(format!(
            "{path:?} is not an absolute path; give one that begins with '/'"
        )))
    }
}

impl Writing {
    /// Begins to write `path`; `unique` keeps two writers of it apart.
    pub(crate) fn begin(
        root: Option<&MachineRoot>,
        path: &str,
        mode: u32,
        unique: u32,
    ) -> Result<Self, Failure> {
        check_path(path)?;
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if name.is_empty() || name == "." || name == ".." {
            return Err(invalid(format!(
                "{path:?} names a directory; give a file's path"
            )));
        }
        let directory = make_directories(root, parent)?;
        let temporary = format!(".{name}.{unique}.{}.part", std::process::id());
        let file = rustix::fs::openat(
            &directory,
            &temporary,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::from_raw_mode(0o600),
        )
        .map_err(failed("create", path))?;
        let writing = Self {
            directory,
            file,
            temporary,
            name: name.into(),
            path: path.into(),
            done: false,
        };
        fchmod(&writing.file, Mode::from_raw_mode(mode & 0o7777))
            .map_err(failed("set the mode of", path))?;
        Ok(writing)
    }

    /// Writes `bytes` behind what was written.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.file, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed("write", &self.path)(errno)),
            }
        }
        Ok(())
    }

    /// Gives the file its name.
    pub(crate) fn commit(mut self) -> Result<(), Failure> {
        renameat(
            &self.directory,
            &self.temporary,
            &self.directory,
            &self.name,
        )
        .map_err(failed("put in place", &self.path))?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.done {
            // It may be gone with its directory.
            let _ = unlinkat(&self.directory, &self.temporary, AtFlags::empty());
        }
    }
}

/// Opens directory `path`, making what is missing of it.
fn make_directories(root: Option<&MachineRoot>, path: &str) -> Result<OwnedFd, Failure> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let whole = if path.is_empty() { "/" } else { path };
    match open_in(root, whole, flags, Mode::empty()) {
        Err(Errno::NOENT) => {}
        other => return other.map_err(failed("open directory", whole)),
    }
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    if name == ".." {
        return Err(failed("open directory", path)(Errno::NOENT));
    }
    let parent = make_directories(root, parent)?;
    if !name.is_empty() && name != "." {
        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed("make directory", path)(errno)),
        }
    }
    open_in(root, whole, flags, Mode::empty()).map_err(failed("open directory", path))
}

impl Reading {
    /// Begins to read `path`.
    pub(crate) fn begin(root: Option<&MachineRoot>, path: &str) -> Result<Self, Failure> {
        check_path(path)?;
        // Non-blocking, so that a FIFO without a writer does not hold the agent up.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = open_in(root, path, flags, Mode::empty()).map_err(failed("open", path))?;
        let found = fstat(&file).map_err(failed("look at", path))?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(invalid(format!("{path} is not a regular file")));
        }
        Ok(Self {
            file,
            path: path.into(),
        })
    }

    /// Reads on while there is room; `Ok(true)` at the end.
    pub(crate) fn read(
        &mut self,
        session: u32,
        scratch: &mut [u8],
        outbox: &mut Outbox,
    ) -> Result<bool, Failure> {
        while outbox.has_room() {
            match rustix::io::read(&self.file, &mut *scratch) {
                Ok(0) => return Ok(true),
                Ok(count) => outbox.push_data(frame::STDOUT, session, &scratch[..count]),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed("read", &self.path)(errno)),
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/file");
        let text = path.to_str().unwrap();
        let mut writing = Writing::begin(None, text, 0o640, 1).unwrap();
        writing.write(b"half").unwrap();
        assert!(!path.exists());
        drop(writing);
        assert_eq!(
            std::fs::read_dir(dir.path().join("a/b")).unwrap().count(),
            0
        );

        let mut writing = Writing::begin(None, text, 0o640, 2).unwrap();
        writing.write(b"whole").unwrap();
        writing.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(&path).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o640);
    }

    #[test]
    fn bad_paths_are_refused_with_a_reason() {
        for path in ["relative", "", "/", "/tmp/", "/tmp/..", "/a\0b"] {
            assert_eq!(
                Writing::begin(None, path, 0o644, 1).unwrap_err().code,
                Code::Invalid
            );
        }
        let failure = Reading::begin(None, "/no/such/file").unwrap_err();
        assert_eq!(failure.code, Code::NotFound);
        assert!(failure.message.contains("/no/such/file"), "{failure}");
        assert_eq!(
            Reading::begin(None, "/dev").unwrap_err().code,
            Code::Invalid
        );
        assert_eq!(
            Reading::begin(None, "/dev/zero").unwrap_err().code,
            Code::Invalid
        );
    }
}

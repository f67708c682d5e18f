//! The Unix socket on which clients of the host ask for connections.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};
use thiserror::Error;

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 128;

/// The longest path of a Unix socket, without the byte that ends it.
const PATH_MAX: usize = 107;

/// The longest that is appended to the path: `_4294967295`.
const SUFFIX_MAX: usize = 11;

/// Why the socket could not be made.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The path, with a port appended, does not fit into a socket address.
    #[error(
        "the vsock path {path} is too long: a Unix socket's path has at most {max} bytes before \
         the port is appended", path = path.display(), max = PATH_MAX - SUFFIX_MAX
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot listen on the vsock path {path}: {source}", path = path.display())]
    Listen {
        /// The path.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
}

/// A socket that listens at a path, from when it is told to, and removes its
/// file when it is dropped.
#[derive(Debug)]
pub(super) struct Listener {
    socket: Option<OwnedFd>,
    path: PathBuf,
}

impl Listener {
    /// Will listen at `path`.
    pub(super) fn new(path: &Path) -> Result<Self, ListenError> {
        if path.as_os_str().len() + SUFFIX_MAX > PATH_MAX {
            return Err(ListenError::PathTooLong {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            socket: None,
            path: path.to_owned(),
        })
    }

    /// Listens at its path, which must not exist; only the owner may connect.
    pub(super) fn listen(&mut self) -> Result<(), ListenError> {
        let socket = Self::try_bind(&self.path).map_err(|error| ListenError::Listen {
            path: self.path.clone(),
            source: error.into(),
        })?;
        self.socket = Some(socket);
        Ok(())
    }

    /// The socket, if it listens.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    fn try_bind(path: &Path) -> rustix::io::Result<OwnedFd> {
        let socket = unix_socket()?;
        // Linux gives the file the mode of the socket, so that there is no
        // moment at which others could connect.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, BACKLOG).inspect_err(|_| {
            let _ = std::fs::remove_file(path);
        })?;
        Ok(socket)
    }

    /// The next client, if one waits.
    pub(super) fn accept(&self) -> rustix::io::Result<UnixStream> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = self.socket.as_ref().ok_or(Errno::BADF)?;
        accept_with(socket, flags).map(UnixStream::from)
    }

    /// Connects to whoever serves `port` for the guest.
    pub(super) fn connect(&self, port: u32) -> rustix::io::Result<UnixStream> {
        let mut path = self.path.as_os_str().as_bytes().to_vec();
        path.extend_from_slice(format!("_{port}").as_bytes());
        let socket = unix_socket()?;
        // Connects at once or fails: EAGAIN if too many wait to be accepted.
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(UnixStream::from(socket))
    }
}

fn unix_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.socket.is_some() {
            // It may have been removed with the guest's directory.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

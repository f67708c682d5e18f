//! Where clients call.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::sockopt::{set_tcp_nodelay, socket_peercred};
use rustix::net::{SocketFlags, accept_with};

use crate::sys;

/// A listening socket and who may call on it.
#[derive(Debug)]
pub struct Listener {
    pub(crate) fd: OwnedFd,
    admission: Admission,
    /// Removed when the listener goes.
    path: Option<PathBuf>,
}

#[derive(Debug)]
enum Admission {
    /// The host only.
    Vsock,
    /// Processes of root and of the agent's own user.
    Unix,
    /// Whoever knows the token.
    Tcp { token: Vec<u8> },
}

/// What a caller must say to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Secret {
    /// Nothing: who it is has been checked.
    None,
    /// This.
    Token(Vec<u8>),
}

impl Secret {
    /// Compares in a time that does not depend on where the difference is.
    pub(crate) fn matches(&self, said: &[u8]) -> bool {
        let Self::Token(token) = self else {
            return true;
        };
        let mut difference = u8::from(token.len() != said.len());
        for (index, byte) in said.iter().enumerate() {
            difference |= byte ^ token.get(index).copied().unwrap_or(0);
        }
        std::hint::black_box(difference) == 0
    }
}

impl Listener {
    /// Listens on vsock `port` for the host.
    ///
    /// # Errors
    /// The kernel's.
    pub fn vsock(port: u32) -> io::Result<Self> {
        let fd = sys::vsock_listen(port)?;
        Ok(Self {
            fd,
            admission: Admission::Vsock,
            path: None,
        })
    }

    /// Listens on a Unix socket that only the agent's user and root may use.
    /// A socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// Somebody listens there, or it is not a socket, or can't be made.
    pub fn unix(path: &Path) -> io::Result<Self> {
        if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
            if UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "an agent serves there already",
                ));
            }
            fs::remove_file(path)?;
        }
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = listener?;
        listener.set_nonblocking(true)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Self {
            fd: listener.into(),
            admission: Admission::Unix,
            path: Some(path.to_owned()),
        })
    }

    /// Listens on TCP for callers that know `token`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn tcp(address: SocketAddr, token: Vec<u8>) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            fd: listener.into(),
            admission: Admission::Tcp { token },
            path: None,
        })
    }

    /// The next caller, and what it must say; `None` when nobody is there or
    /// the one who was is not welcome.
    pub(crate) fn accept(&self) -> Result<Option<(OwnedFd, Secret)>, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accepted = match &self.admission {
            Admission::Vsock => sys::vsock_accept(self.fd.as_fd())
                .map(|(fd, cid)| (cid == sys::VSOCK_HOST).then_some((fd, Secret::None))),
            Admission::Unix => accept_with(&self.fd, flags).map(|fd| {
                let uid = socket_peercred(&fd).map(|who| who.uid).ok()?;
                let welcome = uid.is_root() || uid == rustix::process::geteuid();
                welcome.then_some((fd, Secret::None))
            }),
            Admission::Tcp { token } => accept_with(&self.fd, flags).map(|fd| {
                // Latency only: a refusal does no harm.
                let _ = set_tcp_nodelay(&fd, true);
                Some((fd, Secret::Token(token.clone())))
            }),
        };
        match accepted {
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            other => other,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // It may be gone with its directory.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_matches_itself_only() {
        let secret = Secret::Token(b"0123".to_vec());
        assert!(secret.matches(b"0123"));
        for wrong in [
            &b""[..],
            b"0",
            b"012",
            b"01234",
            b"0124",
            b"1123",
            b"0123\0",
        ] {
            assert!(!secret.matches(wrong), "{wrong:?}");
        }
        assert!(Secret::None.matches(b"anything"));
    }
}

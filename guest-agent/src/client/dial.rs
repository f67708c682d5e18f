//! Endpoints and how they are dialled.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::error::ClientError;
use crate::protocol::AGENT_PORT;

/// Longest answer line of a hybrid vsock socket: `OK 4294967295\n`.
const MAX_ANSWER: usize = 32;

/// Where an agent listens.
#[derive(Debug, Clone)]
pub enum Endpoint {
    /// A guest's vsock device as its VMM offers it: a Unix socket on which
    /// `CONNECT port` is said first.
    HybridVsock {
        /// The VMM's Unix socket.
        socket: PathBuf,
        /// The port in the guest; [`Endpoint::guest`] fills in the agent's.
        port: u32,
    },
    /// An agent that serves on this machine.
    Unix(PathBuf),
    /// An agent that serves over TCP, such as the lab's.
    Tcp {
        /// Where.
        addr: SocketAddr,
        /// The content of its token file.
        token: Vec<u8>,
    },
}

impl Endpoint {
    /// The agent of the guest whose VMM listens on `socket`.
    pub fn guest(socket: impl Into<PathBuf>) -> Self {
        Self::HybridVsock {
            socket: socket.into(),
            port: AGENT_PORT,
        }
    }

    /// What is sent in the hello to prove the right to call.
    pub(super) fn secret(&self) -> &[u8] {
        match self {
            Self::Tcp { token, .. } => token,
            _ => &[],
        }
    }

    /// Dials until `deadline`.
    pub(super) fn dial(&self, deadline: Instant) -> Result<OwnedFd, ClientError> {
        match self {
            Self::HybridVsock { socket, port } => {
                let stream = UnixStream::connect(socket)
                    .and_then(|stream| hybrid_handshake(stream, *port, deadline));
                stream.map(Into::into).map_err(|e| {
                    self.refused(e, "is the guest running? `insula guest list` shows, `insula guest start` starts it")
                })
            }
            Self::Unix(path) => UnixStream::connect(path).map(Into::into).map_err(|e| {
                self.refused(
                    e,
                    "is `insula-agent service` running there, and may you connect?",
                )
            }),
            Self::Tcp { addr, .. } => {
                let stream =
                    TcpStream::connect_timeout(addr, remaining(deadline)).and_then(|stream| {
                        stream.set_nodelay(true)?;
                        Ok(stream)
                    });
                stream.map(Into::into).map_err(|e| {
                    self.refused(e, "is the lab running? `insula lab start` starts it")
                })
            }
        }
    }

    fn refused(&self, source: io::Error, advice: &'static str) -> ClientError {
        ClientError::Connect {
            endpoint: self.to_string(),
            source,
            advice,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HybridVsock { socket, port } => {
                write!(f, "guest agent at {} port {port}", socket.display())
            }
            Self::Unix(path) => write!(f, "agent at {}", path.display()),
            Self::Tcp { addr, .. } => write!(f, "agent at tcp:{addr}"),
        }
    }
}

/// Time left until `deadline`, never zero (zero means "for ever" to sockets).
fn remaining(deadline: Instant) -> Duration {
    deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1))
}

fn hybrid_handshake(
    mut stream: UnixStream,
    port: u32,
    deadline: Instant,
) -> io::Result<UnixStream> {
    stream.set_read_timeout(Some(remaining(deadline)))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    // Byte by byte: what follows the line belongs to the agent's stream.
    let mut answer = Vec::with_capacity(MAX_ANSWER);
    let mut byte = [0];
    while answer.last() != Some(&b'\n') {
        if answer.len() == MAX_ANSWER {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the socket does not answer as a guest's vsock device",
            ));
        }
        match stream.read(&mut byte) {
            Ok(0) => {
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionRefused,
                    "nobody listens on that port in the guest",
                ));
            }
            Ok(_) => answer.push(byte[0]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    if !answer.starts_with(b"OK ") {
        return Err(io::Error::new(
            io::ErrorKind::ConnectionRefused,
            format!("the VMM answered {:?}", String::from_utf8_lossy(&answer)),
        ));
    }
    stream.set_read_timeout(None)?;
    Ok(stream)
}

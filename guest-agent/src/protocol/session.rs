//! Sessions: what turns a connection into a stream, and what travels on it.

use minicbor::{Decode, Encode};

use super::name::Name;
use super::vps::{Exit, VpsSpec};

/// Where a session runs.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum Target {
    /// The machine itself: a microVM's root, or the host that the agent runs on.
    #[n(0)]
    Machine,
    /// A running VPS.
    #[n(1)]
    Vps(#[n(0)] Name),
}

/// A terminal to run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Terminal {
    /// Rows.
    #[n(0)]
    pub rows: u16,
    /// Columns.
    #[n(1)]
    pub columns: u16,
}

/// Asks for a process in a machine or a VPS; the connection becomes its session.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Exec {
    /// Where.
    #[n(0)]
    pub target: Target,
    /// Program and arguments; the program is looked up in the target's `PATH`.
    #[n(1)]
    pub argv: Vec<String>,
    /// Environment, `NAME=value`, added to the target's minimal one.
    #[n(2)]
    pub env: Vec<String>,
    /// Working directory; `/` (a user's home when there is a user) when absent.
    #[n(3)]
    pub cwd: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; root when absent.
    #[n(4)]
    pub user: Option<String>,
    /// Run on a terminal of this size, else on three pipes.
    #[n(5)]
    pub terminal: Option<Terminal>,
}

/// Asks for a VPS that lives as long as its init, whose standard streams are
/// the session: created, started, waited for and destroyed.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Run {
    /// The VPS.
    #[n(0)]
    pub spec: VpsSpec,
    /// Environment, `NAME=value`, added to the minimal one.
    #[n(1)]
    pub env: Vec<String>,
    /// Run on a terminal of this size, else on three pipes.
    #[n(2)]
    pub terminal: Option<Terminal>,
}

/// Attaches to a VPS's console: its recent output, then what follows.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Console {
    /// The VPS.
    #[n(0)]
    pub name: Name,
}

/// Writes a file of the machine from the session's [`Message::Stdin`](super::Message::Stdin) data,
/// through a temporary name, so that it appears whole.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Put {
    /// Absolute path; missing directories are made.
    #[n(0)]
    pub path: String,
    /// Permission bits.
    #[n(1)]
    pub mode: u32,
}

/// Reads a file of the machine into [`Message::Stdout`](super::Message::Stdout) data.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Get {
    /// Absolute path.
    #[n(0)]
    pub path: String,
}

/// Asks for events from a number on; the connection becomes their stream.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Subscribe {
    /// First sequence number wanted; 0 for all that is kept.
    #[n(0)]
    pub since: u64,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Event {
    /// Counts up by one.
    #[n(0)]
    pub sequence: u64,
    /// Milliseconds since the kernel booted.
    #[n(1)]
    pub at_ms: u64,
    /// The VPS that it happened to; `None` when it happened to the machine.
    #[n(2)]
    pub name: Option<Name>,
    /// What.
    #[n(3)]
    pub kind: EventKind,
}

/// What happened to a VPS or the machine.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum EventKind {
    /// It was defined.
    #[n(0)]
    Created,
    /// Its init started.
    #[n(1)]
    Started,
    /// It rebooted and its init started again.
    #[n(2)]
    Rebooted,
    /// It ended and stays down.
    #[n(3)]
    Ended(#[n(0)] Exit),
    /// It failed.
    #[n(4)]
    Failed(#[n(0)] String),
    /// It was destroyed.
    #[n(5)]
    Destroyed,
    /// The kernel killed a process of it for want of memory.
    #[n(6)]
    OutOfMemory,
    /// The machine: all its VPSs are held, for a snapshot.
    #[n(7)]
    Suspended,
    /// The machine: its VPSs go on.
    #[n(8)]
    Resumed,
    /// The machine: it was restored from a snapshot as this
    /// [generation](super::Restored::generation), and its VPSs go on.
    #[n(9)]
    Restored(#[cbor(n(0), with = "minicbor::bytes")] [u8; 16]),
}

/// A session's process was started.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Started {
    /// PID as the agent sees it.
    #[n(0)]
    pub pid: u32,
}

/// The session's terminal has a new size.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Resize {
    /// The size.
    #[n(0)]
    pub terminal: Terminal,
}

/// Sends a signal to the session's process.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Signal {
    /// The signal's number on x86-64 Linux.
    #[n(0)]
    pub signal: u8,
}

/// Lets the client send more standard input.
///
/// A client may have at most [`STDIN_WINDOW`](super::STDIN_WINDOW) bytes of
/// `Stdin` on the way; each credit gives back what the session has taken. So
/// a process that doesn't read its input never keeps a signal or a resize,
/// which travel on the same connection, from being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct StdinCredit {
    /// Bytes taken since the last credit.
    #[n(0)]
    pub bytes: u32,
}

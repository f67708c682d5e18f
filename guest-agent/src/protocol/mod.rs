//! What host and guest say to each other.
//!
//! A connection (vsock in a guest, a Unix or TCP socket on a host) carries
//! [frames](frame): `u32 length | u8 kind | u32 request id | body`, little
//! endian. The first frame in each direction is a [`Hello`] (but see below for
//! the agent's own call); after that the client sends [requests](Message) and the agent answers each with a reply
//! of the same request id. Bodies are CBOR maps with integer keys, so that a
//! field can be added without breaking an older peer: unknown keys are
//! skipped, absent optional keys are `None`. The bodies of stream data frames
//! ([`Message::Stdin`] and so on) are the raw bytes.
//!
//! Control and streams are apart: [`Exec`], [`Run`], [`Console`], [`Put`],
//! [`Get`] and [`Subscribe`] turn the connection that they are sent on into a
//! session, whose last frame from the agent is [`Message::Exited`],
//! [`Message::Done`] or [`Message::Error`].
//!
//! Data flows both ways without one direction holding up the other. Output is
//! bounded by the connection itself: what the client does not take stays with
//! the process. Input is bounded by credits: at most [`STDIN_WINDOW`] bytes of
//! [`Message::Stdin`] are on the way, and each [`Message::StdinCredit`] gives
//! back what was taken, so that signals and resizes are always read.
//!
//! The agent of a guest makes one call itself, to [`HOST_PORT`], as the first
//! thing in its life; that the guest is ready is its [`Hello`] there, whose
//! secret is the boot's nonce. The agent keeps this connection for its whole
//! life, and dials again when it is lost. What the host says on it, it says as
//! the machine itself: [`Restored`] to a guest that was [restored](snapshot), and
//! the time ([`Clock`]) to one that stood still for a while. The agent may ask there for a sign of life
//! ([`Message::Ping`], answered by [`Message::Done`]), and the last that it
//! says is a [`Goodbye`], after which the host hangs up, so that the agent
//! knows that it was heard before it resets the guest.
//!
//! Everything that arrives is untrusted: lengths are checked before anything
//! is allocated, names are validated when they are decoded.

pub mod boot;
pub mod failure;
pub mod frame;
pub mod message;
pub mod name;
pub mod session;
pub mod snapshot;
pub mod vps;

pub use boot::{BootConfig, Disk, DiskRole};
pub use failure::{Code, Failure};
pub use frame::{Decoder, Frame, FrameError, MAX_FRAME};
pub use message::{Goodbye, GoodbyeReason, Hello, Info, Message, VpsDestroy, VpsNamed, VpsStop};
pub use name::{Name, NameError};
pub use session::{
    Console, Event, EventKind, Exec, Get, Put, Resize, Run, Signal, Started, StdinCredit,
    Subscribe, Target, Terminal,
};
pub use snapshot::{Clock, Restored, Resumed};
pub use vps::{Exit, Init, Limits, RestartPolicy, Usage, VpsInfo, VpsSpec, VpsState};

/// Major version of the protocol: peers of different majors refuse each other.
pub const MAJOR: u16 = 1;
/// Minor version: grows with each compatible addition.
pub const MINOR: u16 = 2;

/// The vsock port that the agent listens on. Below 1024, because only
/// `CAP_NET_BIND_SERVICE` in the initial user namespace may bind there, so
/// that no VPS can take the agent's place.
pub const AGENT_PORT: u32 = 100;
/// The host's vsock port that the agent dials first of all, to say hello.
pub const HOST_PORT: u32 = 101;
/// Bytes of [`Message::Stdin`] that a client may have on the way in one
/// session before it must wait for a [`Message::StdinCredit`].
pub const STDIN_WINDOW: usize = 256 * 1024;
/// Most bytes that one data frame should carry: a pipe's worth.
pub const CHUNK: usize = 64 * 1024;
/// Milliseconds of the guest's time after which a [suspension](Message::Suspend)
/// that nobody ends or renews ends by itself.
pub const SUSPENSION_MS: u64 = 10_000;
/// Where the agent finds its [`BootConfig`] in the initramfs.
pub const BOOT_CONFIG_PATH: &str = "/etc/insula/boot.cbor";

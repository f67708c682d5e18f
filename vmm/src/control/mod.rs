//! The control socket of a running machine.
//!
//! A client says what it wants in one JSON object on one line, and gets one
//! back: `{"version":1,"operation":"pause"}` is answered by
//! `{"version":1,"done":{"state":"paused"}}` or by
//! `{"version":1,"error":{"kind":"…","message":"…"}}`. What can be asked for is
//! in [`Operation`] and what can be answered in [`Done`]; how the two travel is
//! apart from that, in [`Server`] and [`Client`].
//!
//! The socket has mode 0600 in a directory of mode 0700: whoever can connect
//! could as well kill the machine.

mod client;
mod message;
mod server;

pub use client::{Client, ControlError};
pub use message::{
    AddressRange, Answer, AnswerResult, Counts, Done, Failure, FailureKind, MachineState,
    Operation, Request, SnapshotWritten, VERSION,
};
pub use server::{Incoming, Server, Waiting};

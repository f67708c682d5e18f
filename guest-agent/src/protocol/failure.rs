//! Why a request failed.

use std::fmt;

use minicbor::{Decode, Encode};

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Failure {
    /// What kind of failure, for programs.
    #[n(0)]
    pub code: Code,
    /// What was tried, with which name or file, and what to do, for people.
    #[n(1)]
    pub message: String,
    /// The kernel's error number where there was one.
    #[n(2)]
    pub errno: Option<i32>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// What kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Code {
    /// The request makes no sense as it is.
    #[n(0)]
    Invalid,
    /// Nothing has that name.
    #[n(1)]
    NotFound,
    /// The name is taken.
    #[n(2)]
    Exists,
    /// It can't be done in the state that the VPS is in.
    #[n(3)]
    State,
    /// Not known to this agent.
    #[n(4)]
    Unsupported,
    /// Out of memory, disk, processes or another resource.
    #[n(5)]
    Exhausted,
    /// The secret in the hello is wrong.
    #[n(6)]
    Denied,
    /// The program could not be executed: 127 not found.
    #[n(7)]
    CommandNotFound,
    /// The program could not be executed: 126 not executable.
    #[n(8)]
    CommandNotExecutable,
    /// Anything else.
    #[n(9)]
    Internal,
}

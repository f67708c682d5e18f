//! Snapshots: what keeps a guest still while it is copied, and what makes a
//! copy a machine of its own.
//!
//! Before a snapshot the host asks the agent to [suspend](super::Message::Suspend)
//! and afterwards, in the original, to [resume](super::Message::Resume). In a
//! restored guest every vsock connection has been reset: the agent dials the
//! host again, says hello with the nonce that it knows (the snapshot's), and
//! hears [`Restored`] on that connection, and on no other. Only then do the
//! processes of its VPSs go on; the agent says [`Resumed`].

use std::fmt;

use minicbor::{Decode, Encode};

use super::name::Name;

/// Tells the agent that its guest was restored from a snapshot, and who it is
/// from now on. Only believed on the agent's own call to the host.
#[derive(Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Restored {
    /// Which restore this is: never the same twice.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub generation: [u8; 16],
    /// Fresh random bytes for the kernel's generator.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub entropy: [u8; 64],
    /// The host's wall clock now, in nanoseconds since the Unix epoch; 0 when
    /// unknown.
    #[n(2)]
    pub wall_clock_ns: u64,
    /// The guest's host name.
    #[n(3)]
    pub hostname: Name,
    /// Takes the place of the [boot nonce](super::BootConfig::nonce).
    #[cbor(n(4), with = "minicbor::bytes")]
    pub nonce: [u8; 16],
}

impl fmt::Debug for Restored {
    /// Secrets are not printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restored")
            .field("generation", &self.generation)
            .field("wall_clock_ns", &self.wall_clock_ns)
            .field("hostname", &self.hostname)
            .finish_non_exhaustive()
    }
}

/// The agent's answer to [`Restored`]: the guest is a machine of its own, and
/// its processes run.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Resumed {
    /// [`Restored::generation`].
    #[cbor(n(0), with = "minicbor::bytes")]
    pub generation: [u8; 16],
}

/// Tells the agent the time after its guest stood still: for the guest no time
/// passed, but the wall clock goes on elsewhere. Only believed on the agent's
/// own call to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Clock {
    /// The host's wall clock now, in nanoseconds since the Unix epoch.
    #[n(0)]
    pub wall_clock_ns: u64,
}

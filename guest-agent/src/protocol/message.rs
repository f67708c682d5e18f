//! The messages: requests about the agent and its VPSs, and the list of all.

use minicbor::{Decode, Encode};

use super::failure::Failure;
use super::frame::FrameError;
use super::name::Name;
use super::session::{
    Console, Event, Exec, Get, Put, Resize, Run, Signal, Started, StdinCredit, Subscribe,
};
use super::snapshot::{Clock, Restored, Resumed};
use super::vps::{Exit, VpsInfo, VpsSpec};

/// First message of both sides.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// [`MAJOR`](super::MAJOR) of the sender.
    #[n(0)]
    pub major: u16,
    /// [`MINOR`](super::MINOR) of the sender.
    #[n(1)]
    pub minor: u16,
    /// Which program of which version sends this.
    #[n(2)]
    pub build: String,
    /// On the agent's own call to the host: the boot nonce. On a client's
    /// call over TCP: the token. Else empty.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub secret: Vec<u8>,
}

/// The agent's last words before the guest powers off.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Goodbye {
    /// Why the guest goes.
    #[n(0)]
    pub reason: GoodbyeReason,
}

/// Why a guest goes.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum GoodbyeReason {
    /// It was asked to.
    #[n(0)]
    Requested,
    /// The agent could not go on, and says why.
    #[n(1)]
    Failed(#[n(0)] String),
}

/// Facts about the agent and the kernel under it.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Info {
    /// `uname -r`.
    #[n(0)]
    pub kernel: String,
    /// CPUs online.
    #[n(1)]
    pub cpus: u32,
    /// `MemTotal`, in bytes.
    #[n(2)]
    pub memory_bytes: u64,
    /// `MemAvailable`, in bytes.
    #[n(3)]
    pub memory_available_bytes: u64,
    /// Milliseconds since the kernel booted.
    #[n(4)]
    pub uptime_ms: u64,
    /// Resident set of the agent, in bytes.
    #[n(5)]
    pub agent_resident_bytes: u64,
    /// Templates that VPSs can start from.
    #[n(6)]
    pub templates: Vec<Name>,
    /// Number of VPSs that are defined.
    #[n(7)]
    pub vps_count: u32,
    /// Which restore of a snapshot this guest is; `None` when it was booted.
    #[cbor(n(8), with = "minicbor::bytes")]
    pub generation: Option<[u8; 16]>,
    /// Whether the processes of VPSs are [suspended](super::Message::Suspend).
    #[n(9)]
    pub suspended: Option<bool>,
}

/// Names a VPS.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct VpsNamed {
    /// The VPS.
    #[n(0)]
    pub name: Name,
}

/// Asks a VPS to stop.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct VpsStop {
    /// The VPS.
    #[n(0)]
    pub name: Name,
    /// Milliseconds to wait before it is killed; 0 kills at once.
    #[n(1)]
    pub timeout_ms: u32,
    /// Start it again afterwards.
    #[n(2)]
    pub restart: bool,
}

/// Asks for a VPS's end, data included.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct VpsDestroy {
    /// The VPS.
    #[n(0)]
    pub name: Name,
    /// Kill it if it runs; else a running VPS is refused.
    #[n(1)]
    pub force: bool,
}

macro_rules! messages {
    (
        cbor { $( $(#[$meta:meta])* $variant:ident($body:ty) = $kind:literal, )* }
        raw { $( $(#[$raw_meta:meta])* $raw:ident = $raw_kind:literal, )* }
        bare { $( $(#[$bare_meta:meta])* $bare:ident = $bare_kind:literal, )* }
    ) => {
        /// Every message. The number behind each is its kind byte on the wire.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Message {
            $( $(#[$meta])* $variant($body), )*
            $( $(#[$raw_meta])* $raw(Vec<u8>), )*
            $( $(#[$bare_meta])* $bare, )*
        }

        impl Message {
            /// The kind byte.
            pub fn kind(&self) -> u8 {
                match self {
                    $( Self::$variant(_) => $kind, )*
                    $( Self::$raw(_) => $raw_kind, )*
                    $( Self::$bare => $bare_kind, )*
                }
            }

            /// Appends the body's wire form.
            pub(super) fn encode_body(&self, out: &mut Vec<u8>) {
                match self {
                    $( Self::$variant(body) => encode(body, out), )*
                    $( Self::$raw(bytes) => out.extend_from_slice(bytes), )*
                    $( Self::$bare => {} )*
                }
            }

            /// Reads a body of the given kind.
            ///
            /// # Errors
            /// An unknown kind, or a body that is not what the kind promises.
            pub fn decode(kind: u8, body: &[u8]) -> Result<Self, FrameError> {
                let result = match kind {
                    $( $kind => minicbor::decode(body).map(Self::$variant), )*
                    $( $raw_kind => Ok(Self::$raw(body.to_vec())), )*
                    $( $bare_kind => Ok(Self::$bare), )*
                    _ => return Err(FrameError::Kind(kind)),
                };
                result.map_err(|source| FrameError::Body { kind, source })
            }
        }
    };
}

messages! {
    cbor {
        /// First message of both sides.
        Hello(Hello) = 1,
        /// The guest goes.
        Goodbye(Goodbye) = 2,
        /// A request failed; ends a session.
        Error(Failure) = 3,

        /// Define a VPS. Answer: `Vps`.
        VpsCreate(VpsSpec) = 16,
        /// Start a VPS; answered when its init was executed. Answer: `Vps`.
        VpsStart(VpsNamed) = 17,
        /// Stop (or restart) a VPS; answered when it is down (up again). Answer: `Vps`.
        VpsStop(VpsStop) = 18,
        /// Destroy a VPS and its data. Answer: `Done`.
        VpsDestroy(VpsDestroy) = 19,
        /// Ask how a VPS is. Answer: `Vps`.
        VpsGet(VpsNamed) = 20,

        /// Session: a process.
        Exec(Exec) = 32,
        /// Session: a VPS as long as its init.
        Run(Run) = 33,
        /// Session: a VPS's console.
        Console(Console) = 34,
        /// Session: write a file of the machine.
        Put(Put) = 35,
        /// Session: read a file of the machine.
        Get(Get) = 36,
        /// Session: events.
        Subscribe(Subscribe) = 37,

        /// In a session: the terminal's new size.
        Resize(Resize) = 48,
        /// In a session: send a signal.
        Signal(Signal) = 49,
        /// In a session: its process runs.
        Started(Started) = 50,
        /// Last of a session: how its process ended, after all its output.
        Exited(Exit) = 51,
        /// In an event stream.
        Event(Event) = 52,
        /// In a session: more standard input may be sent.
        StdinCredit(StdinCredit) = 53,

        /// Answer: the agent and its kernel.
        Info(Info) = 64,
        /// Answer: one VPS.
        Vps(VpsInfo) = 65,
        /// Answer: all VPSs, by name.
        VpsAll(Vec<VpsInfo>) = 66,

        /// On the agent's call, from the host: the guest was restored. Answer: `Resumed`.
        Restored(Restored) = 80,
        /// On the agent's call, to the host: the guest is a machine of its own.
        Resumed(Resumed) = 81,
        /// On the agent's call, from the host: the guest stood still, and this is the time. No answer.
        Clock(Clock) = 82,
    }
    raw {
        /// In a session: bytes for standard input, or of a file to write.
        Stdin = 56,
        /// In a session: bytes of standard output (or of the terminal, or of a file).
        Stdout = 57,
        /// In a session: bytes of standard error.
        Stderr = 58,
    }
    bare {
        /// Answer: done. Last of a `Put` or `Get` session.
        Done = 4,
        /// Is anybody there? Answer: `Done`.
        Ping = 5,
        /// Ask for the agent's facts. Answer: `Info`.
        GetInfo = 6,
        /// Stop all VPSs and power the guest off (a service just ends). Answer: `Done`, then the connection closes.
        PowerOff = 7,
        /// Ask for all VPSs. Answer: `VpsAll`.
        VpsList = 8,
        /// Hold all processes of VPSs and machine sessions and write disks out, for a snapshot. Answer:
        /// `Done`. Ends by `Resume`, by a restore, or by itself after [`SUSPENSION_MS`](super::SUSPENSION_MS).
        Suspend = 9,
        /// End a suspension. Answer: `Done`.
        Resume = 10,
        /// In a session: no more standard input.
        StdinEof = 59,
    }
}

fn encode<T: Encode<()>>(body: &T, out: &mut Vec<u8>) {
    // Writing to a vector cannot fail, and our own types always encode.
    let written = minicbor::encode(body, &mut *out);
    debug_assert!(written.is_ok(), "our own messages encode");
}

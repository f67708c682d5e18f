//! The header of each vsock packet (virtio 1.2, 5.10.6): 44 bytes,
//! little-endian, packed.
//!
//! Decoded here instead of by the `virtio-vsock` crate, whose packet type
//! accepts only one data descriptor; a Linux guest that sends with
//! `MSG_ZEROCOPY` uses one for each page.

/// The stream type, the only one that the device offers.
pub const TYPE_STREAM: u16 = 1;

/// Bytes in a header.
pub const HEADER_LEN: usize = 44;

/// `SHUTDOWN` flag: the sender will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// `SHUTDOWN` flag: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both `SHUTDOWN` flags.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet does (5.10.6, `enum virtio_vsock_op`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Ask for a connection.
    Request,
    /// Accept one.
    Response,
    /// Refuse or end one at once.
    Reset,
    /// End one in the directions that the flags tell.
    Shutdown,
    /// Carry data.
    Data,
    /// Tell how much room there is.
    CreditUpdate,
    /// Ask how much room there is.
    CreditRequest,
}

impl Op {
    const ALL: [Self; 7] = [
        Self::Request,
        Self::Response,
        Self::Reset,
        Self::Shutdown,
        Self::Data,
        Self::CreditUpdate,
        Self::CreditRequest,
    ];

    /// The number on the wire.
    pub fn code(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }

    /// The operation with this number on the wire.
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|op| op.code() == code)
    }
}

/// A decoded header. Every value of every field can come from a guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Context that sent the packet.
    pub src_cid: u64,
    /// Context that it is for.
    pub dst_cid: u64,
    /// Port that sent it.
    pub src_port: u32,
    /// Port that it is for.
    pub dst_port: u32,
    /// Number of data bytes that follow.
    pub len: u32,
    /// Kind of connection: see [`TYPE_STREAM`].
    pub kind: u16,
    /// See [`Op`].
    pub op: u16,
    /// Flags of the operation.
    pub flags: u32,
    /// Size in bytes of the sender's receive buffer for this connection.
    pub buf_alloc: u32,
    /// How many bytes have left that buffer so far, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Decodes a header.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }

    /// Encodes it.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

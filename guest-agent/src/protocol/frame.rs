//! Frames: the envelope of every message.

use thiserror::Error;

use super::message::Message;

/// Largest frame, in bytes after the length field. Checked before allocation.
pub const MAX_FRAME: usize = 1 << 20;

/// Bytes of a frame before its body: length, kind, request id.
pub const HEADER: usize = 9;

/// Bytes that the length field counts besides the body: kind and request id.
const COUNTED: usize = 5;

/// Why bytes are not a frame, or a frame is not a message.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The length field is outside `5..=MAX_FRAME`.
    #[error("frame length {0} is outside 5..={MAX_FRAME}: the peer does not speak this protocol")]
    Length(u32),
    /// The kind byte is not known to this version.
    #[error("unknown message kind {0}: the peer is newer than this program")]
    Kind(u8),
    /// The body of a known kind did not decode.
    #[error("malformed body of message kind {kind}: {source}")]
    Body {
        /// The message's kind byte.
        kind: u8,
        /// What the CBOR decoder found.
        source: minicbor::decode::Error,
    },
}

/// A message with the identifier that ties replies to requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// Chosen by the requester; replies carry it back. 0 in one-way messages.
    pub id: u32,
    /// The message.
    pub message: Message,
}

impl Frame {
    /// A frame of `message` with request identifier `id`.
    pub fn new(id: u32, message: Message) -> Self {
        Self { id, message }
    }

    /// Appends the wire form to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.push(self.message.kind());
        out.extend_from_slice(&self.id.to_le_bytes());
        self.message.encode_body(out);
        let length = (out.len() - start - 4) as u32;
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// The wire form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        self.encode(&mut out);
        out
    }
}

/// The kind byte of [`Message::Stdout`].
pub const STDOUT: u8 = 57;
/// The kind byte of [`Message::Stderr`].
pub const STDERR: u8 = 58;

/// Appends the wire form of a data message ([`STDOUT`] or [`STDERR`]) that
/// carries `bytes`, without making a [`Message`] of them first.
pub fn encode_data(kind: u8, id: u32, bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(HEADER + bytes.len());
    out.extend_from_slice(&((bytes.len() + COUNTED) as u32).to_le_bytes());
    out.push(kind);
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Cuts a byte stream into frames.
///
/// Bytes go in by [`Decoder::push`] in whatever pieces they arrive; frames
/// come out of [`Decoder::next_frame`]. At most one frame and what was pushed
/// after it is buffered.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// An empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        } else if self.start > 64 * 1024 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that are buffered and not yet part of a returned frame.
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// The next whole frame, or `None` until more bytes arrive.
    ///
    /// # Errors
    /// A [`FrameError::Length`] leaves the stream unusable: close it. After
    /// the others the stream is at the next frame; the error names the kind,
    /// and [`Code::Unsupported`](super::Code) is the fitting answer.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, (u32, FrameError)> {
        let pending = &self.buffer[self.start..];
        let Some(length) = pending.first_chunk::<4>() else {
            return Ok(None);
        };
        let announced = u32::from_le_bytes(*length);
        let length = announced as usize;
        if !(COUNTED..=MAX_FRAME).contains(&length) {
            return Err((0, FrameError::Length(announced)));
        }
        let Some(frame) = pending.get(4..4 + length) else {
            return Ok(None);
        };
        let kind = frame[0];
        let id = u32::from_le_bytes([frame[1], frame[2], frame[3], frame[4]]);
        let message = Message::decode(kind, &frame[COUNTED..]);
        self.start += 4 + length;
        match message {
            Ok(message) => Ok(Some(Frame { id, message })),
            Err(error) => Err((id, error)),
        }
    }
}

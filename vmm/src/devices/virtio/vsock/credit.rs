//! Flow control of one connection (virtio 1.2, 5.10.6.3), both ways.
//!
//! Each side tells the size of its receive buffer and how many bytes have
//! left it; the other one never has more on the way than fits. All counters
//! are modulo 2^32.

/// Our receive buffer for what the guest sends, in bytes. Linux sends packets
/// of up to 64 KiB: some of them fit, so that the guest need not wait for each.
pub(super) const RECEIVE_BUFFER: u32 = 256 << 10;

/// The most that is on its way to the guest, whatever room it claims. Bounds
/// what counters may differ by, so that a lie shows.
const SEND_WINDOW_MAX: u32 = 1 << 30;

/// The guest broke the rules of the protocol: the connection has to end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Violation;

/// Counters of one connection.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Credit {
    /// Bytes that came from the guest.
    received: u32,
    /// Bytes of these that have left our buffer.
    forwarded: u32,
    /// `forwarded` as the guest knows it.
    advertised: u32,
    /// Bytes that went to the guest.
    sent: u32,
    /// The guest's receive buffer.
    peer_buffer: u32,
    /// Bytes that have left it.
    peer_forwarded: u32,
}

impl Credit {
    /// Takes what a packet of the guest's tells about its buffer.
    ///
    /// # Errors
    /// More has left the buffer than was ever sent.
    pub(super) fn update_peer(&mut self, buf_alloc: u32, fwd_cnt: u32) -> Result<(), Violation> {
        self.peer_buffer = buf_alloc;
        self.peer_forwarded = fwd_cnt;
        if self.in_flight() > SEND_WINDOW_MAX {
            Err(Violation)
        } else {
            Ok(())
        }
    }

    /// Counts `len` bytes that came from the guest.
    ///
    /// # Errors
    /// They do not fit into our buffer.
    pub(super) fn receive(&mut self, len: u32) -> Result<(), Violation> {
        let buffered = self.received.wrapping_sub(self.forwarded);
        match buffered.checked_add(len) {
            Some(total) if total <= RECEIVE_BUFFER => {
                self.received = self.received.wrapping_add(len);
                Ok(())
            }
            _ => Err(Violation),
        }
    }

    /// Counts `len` bytes that have left our buffer.
    pub(super) fn forward(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len);
    }

    /// Counts `len` bytes that go to the guest.
    pub(super) fn send(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }

    /// How many bytes the guest has room for.
    pub(super) fn available(&self) -> u32 {
        self.peer_buffer
            .min(SEND_WINDOW_MAX)
            .saturating_sub(self.in_flight())
    }

    /// Whether the guest should be told that there is room again: it believes
    /// that our buffer is more than half full, and that is not so.
    pub(super) fn is_update_due(&self) -> bool {
        let believed = self.received.wrapping_sub(self.advertised);
        believed > RECEIVE_BUFFER / 2 && self.forwarded != self.advertised
    }

    /// `fwd_cnt` for a packet to the guest, which then knows it.
    pub(super) fn advertise(&mut self) -> u32 {
        self.advertised = self.forwarded;
        self.forwarded
    }

    fn in_flight(&self) -> u32 {
        self.sent.wrapping_sub(self.peer_forwarded)
    }
}

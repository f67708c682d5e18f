//! The recent output of a VPS's console.

use std::collections::VecDeque;

/// Bytes of output that are kept.
const KEPT: usize = 64 * 1024;

/// A ring of bytes with absolute positions: a reader that falls behind loses
/// the oldest and never keeps the VPS from writing.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    bytes: VecDeque<u8>,
    /// Position of the byte behind the last.
    end: u64,
}

impl Ring {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.end += bytes.len() as u64;
        let bytes = &bytes[bytes.len().saturating_sub(KEPT)..];
        let excess = (self.bytes.len() + bytes.len()).saturating_sub(KEPT);
        self.bytes.drain(..excess);
        self.bytes.extend(bytes);
    }

    /// Position of the oldest byte that is kept.
    pub(crate) fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// Whether there is something at or behind `position`.
    pub(crate) fn has(&self, position: u64) -> bool {
        position < self.end
    }

    /// Moves at most `out.len()` bytes from `position` on into `out`; returns
    /// how many, and the position behind them.
    pub(crate) fn read(&self, position: u64, out: &mut [u8]) -> (usize, u64) {
        let from = position.clamp(self.start(), self.end);
        let skip = (from - self.start()) as usize;
        let mut count = 0;
        for (to, byte) in out.iter_mut().zip(self.bytes.iter().skip(skip)) {
            *to = *byte;
            count += 1;
        }
        (count, from + count as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_follow_and_laggards_lose_the_oldest() {
        let mut ring = Ring::default();
        ring.push(b"hello ");
        ring.push(b"world");
        let mut out = [0; 8];
        assert_eq!(ring.read(0, &mut out), (8, 8));
        assert_eq!(&out, b"hello wo");
        assert_eq!(ring.read(8, &mut out), (3, 11));
        assert!(!ring.has(11));

        ring.push(&vec![b'x'; KEPT]);
        assert_eq!(ring.start(), 11);
        assert_eq!(ring.read(3, &mut out), (8, 19));
        ring.push(&vec![b'y'; KEPT * 2]);
        assert_eq!(ring.start() + KEPT as u64, ring.end);
        assert_eq!(ring.end, 11 + 3 * KEPT as u64);
    }
}

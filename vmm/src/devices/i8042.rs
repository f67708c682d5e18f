//! The keyboard controller, of which only the reset line is there: the way in
//! which a guest with `reboot=k` asks to be reset.

use minicbor::{Decode, Encode};

use super::bus::BusDevice;

/// First I/O port: data.
pub const I8042_PORT: u64 = 0x60;
/// Number of ports: data, and commands at the last.
pub const I8042_LENGTH: u64 = 5;

const COMMAND_OFFSET: u64 = 4;
const COMMAND_PULSE_RESET: u8 = 0xfe;

/// The reset line. Everything reads as an idle, empty controller.
pub struct ResetLine<F> {
    reset: F,
}

impl<F: FnMut() + Send> ResetLine<F> {
    /// Calls `reset` when the guest pulses the line.
    pub fn new(reset: F) -> Self {
        Self { reset }
    }
}

/// What belongs to a snapshot: nothing, since only a pulse does anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ResetLineState {}

impl<F: FnMut() + Send> BusDevice for ResetLine<F> {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == COMMAND_OFFSET && data == [COMMAND_PULSE_RESET] {
            (self.reset)();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        let count = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&count);
        let mut line = ResetLine::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        line.write(0, &[0xfe]);
        line.write(4, &[0xd1]);
        line.write(4, &[0xfe, 0]);
        assert_eq!(count.load(Ordering::Relaxed), 0);
        line.write(4, &[0xfe]);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        let mut status = [0xff];
        line.read(4, &mut status);
        assert_eq!(status, [0]);
    }
}

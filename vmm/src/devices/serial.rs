//! The serial console: an 8250 at COM1 whose output goes to a log.

use std::io;

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};
use vmm_sys_util::eventfd::EventFd;

use super::bus::BusDevice;
use super::console_log::SharedConsoleLog;

/// First I/O port of COM1.
pub const COM1_PORT: u64 = 0x3f8;
/// Number of ports.
pub const COM1_LENGTH: u64 = 8;
/// COM1's interrupt line.
pub const COM1_GSI: u32 = 4;

/// An 8250 on the bus.
pub struct SerialConsole {
    uart: Serial<Interrupt, NoEvents, SharedConsoleLog>,
}

impl SerialConsole {
    /// A console that writes to `log` and raises its interrupt by `interrupt`.
    pub fn new(interrupt: EventFd, log: SharedConsoleLog) -> Self {
        Self {
            uart: Serial::new(Interrupt(interrupt), log),
        }
    }
}

impl BusDevice for SerialConsole {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let [byte] = data {
            *byte = self.uart.read(offset as u8);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let [byte] = data {
            // The log takes every byte; an interrupt that cannot be raised
            // because one is pending is raised.
            let _ = self.uart.write(offset as u8, *byte);
        }
    }
}

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::devices::console_log::ConsoleLog;

    #[test]
    fn bytes_reach_the_log_and_odd_widths_do_not() {
        let log = SharedConsoleLog::new(ConsoleLog::discard());
        let mut serial = SerialConsole::new(EventFd::new(EFD_NONBLOCK).unwrap(), log.clone());
        for byte in b"hi\n" {
            serial.write(0, &[*byte]);
        }
        serial.write(0, b"wide");
        assert_eq!(log.tail(10), "hi");
        let mut line_status = [0];
        serial.read(5, &mut line_status);
        assert_eq!(line_status[0] & 0x60, 0x60);
        let mut wide = [0; 2];
        serial.read(5, &mut wide);
        assert_eq!(wide, [0xff; 2]);
    }
}

//! The serial console: an 8250 at COM1 whose output goes to a log.

use std::io;
use std::sync::Arc;

use minicbor::{Decode, Encode};
use thiserror::Error;
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial, SerialState as Registers};
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
    interrupt: Arc<EventFd>,
    log: SharedConsoleLog,
}

impl SerialConsole {
    /// A console that writes to `log` and raises its interrupt by `interrupt`.
    pub fn new(interrupt: EventFd, log: SharedConsoleLog) -> Self {
        let interrupt = Arc::new(interrupt);
        let uart = Serial::new(Interrupt(Arc::clone(&interrupt)), log.clone());
        Self {
            uart,
            interrupt,
            log,
        }
    }

    /// Goes on from what [`Self::save`] returned.
    ///
    /// # Errors
    /// The state holds more input than the UART has room for.
    pub fn restore(&mut self, state: &SerialState) -> Result<(), SerialStateError> {
        let interrupt = Interrupt(Arc::clone(&self.interrupt));
        let registers = state.registers();
        self.uart = Serial::from_state(&registers, interrupt, NoEvents, self.log.clone()).map_err(
            |_| SerialStateError {
                length: state.input.len(),
            },
        )?;
        Ok(())
    }

    /// What belongs to a snapshot. What was printed is in the log.
    pub fn save(&self) -> SerialState {
        SerialState::of(&self.uart.state())
    }
}

/// The registers of an 8250.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct SerialState {
    /// Divisor latch, low and high byte.
    #[n(0)]
    pub divisor: [u8; 2],
    /// Interrupt enable register.
    #[n(1)]
    pub interrupt_enable: u8,
    /// Interrupt identification register.
    #[n(2)]
    pub interrupt_identification: u8,
    /// Line control register.
    #[n(3)]
    pub line_control: u8,
    /// Line status register.
    #[n(4)]
    pub line_status: u8,
    /// Modem control register.
    #[n(5)]
    pub modem_control: u8,
    /// Modem status register.
    #[n(6)]
    pub modem_status: u8,
    /// Scratch register.
    #[n(7)]
    pub scratch: u8,
    /// Input that the guest has not read.
    #[cbor(n(8), with = "minicbor::bytes")]
    pub input: Vec<u8>,
}

impl SerialState {
    fn of(registers: &Registers) -> Self {
        Self {
            divisor: [registers.baud_divisor_low, registers.baud_divisor_high],
            interrupt_enable: registers.interrupt_enable,
            interrupt_identification: registers.interrupt_identification,
            line_control: registers.line_control,
            line_status: registers.line_status,
            modem_control: registers.modem_control,
            modem_status: registers.modem_status,
            scratch: registers.scratch,
            input: registers.in_buffer.clone(),
        }
    }

    fn registers(&self) -> Registers {
        let [baud_divisor_low, baud_divisor_high] = self.divisor;
        Registers {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: self.interrupt_enable,
            interrupt_identification: self.interrupt_identification,
            line_control: self.line_control,
            line_status: self.line_status,
            modem_control: self.modem_control,
            modem_status: self.modem_status,
            scratch: self.scratch,
            in_buffer: self.input.clone(),
        }
    }
}

/// A saved console cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the serial console has {length} bytes of unread input, more than there is room for")]
pub struct SerialStateError {
    /// Bytes of input.
    pub length: usize,
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

struct Interrupt(Arc<EventFd>);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
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

    fn event() -> EventFd {
        EventFd::new(EFD_NONBLOCK).unwrap()
    }

    proptest! {
        #[test]
        fn a_console_goes_on_where_it_was(
            bytes in any::<[u8; 10]>(),
            input in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let state = SerialState {
                divisor: [bytes[0], bytes[1]],
                interrupt_enable: bytes[2],
                interrupt_identification: bytes[3],
                line_control: bytes[4],
                line_status: bytes[5],
                modem_control: bytes[6],
                modem_status: bytes[7],
                scratch: bytes[8],
                input: input.clone(),
            };
            let encoded = minicbor::to_vec(&state).unwrap();
            prop_assert_eq!(&minicbor::decode::<SerialState>(&encoded).unwrap(), &state);
            let log = SharedConsoleLog::new(ConsoleLog::discard());
            let mut console = SerialConsole::new(event(), log);
            match console.restore(&state) {
                Ok(()) => prop_assert_eq!(console.save(), state),
                Err(error) => prop_assert!(input.len() > 64, "{error}"),
            }
        }
    }
}

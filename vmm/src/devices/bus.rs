//! Address-space dispatch: which device answers at a port or MMIO address.
//!
//! One [`Bus`] serves port I/O and another one MMIO; both are filled while the
//! machine is assembled and only read afterwards, so that vCPU threads share
//! them without a lock of the bus's own.

use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

/// A device that answers reads and writes in its own range of a [`Bus`].
///
/// `offset` is relative to the start of the device's range, and
/// `offset + data.len()` never passes its end. `data` is little-endian, as the
/// guest sees it. Every width and alignment the processor can produce may
/// arrive; a device ignores what its specification does not define.
pub trait BusDevice: Send {
    /// Fills `data` with what the guest reads at `offset`.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes what the guest writes at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device as the bus holds it: shared with whoever else drives it, and
/// locked for each access, because several vCPUs may come at once.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Why a range could not be put on a [`Bus`].
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or its end does not fit in 64 bits.
    #[error("bus range at {base:#x} with length {len:#x} is empty or passes the address space")]
    InvalidRange {
        /// First address of the refused range.
        base: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// The range shares addresses with one that is on the bus already.
    #[error(
        "bus range at {base:#x} with length {len:#x} overlaps the one at {other_base:#x} with \
         length {other_len:#x}"
    )]
    Overlap {
        /// First address of the refused range.
        base: u64,
        /// Its length in bytes.
        len: u64,
        /// First address of the range that is there.
        other_base: u64,
        /// Its length in bytes.
        other_len: u64,
    },
}

struct Slot {
    base: u64,
    len: u64,
    device: SharedDevice,
}

/// Non-overlapping ranges of one address space, each with its device.
#[derive(Default)]
pub struct Bus {
    /// Sorted by `base`.
    slots: Vec<Slot>,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at the `len` addresses from `base`.
    ///
    /// # Errors
    /// The range is empty, passes the end of the address space, or overlaps
    /// one that is there already.
    pub fn insert(&mut self, base: u64, len: u64, device: SharedDevice) -> Result<(), BusError> {
        let last = len.checked_sub(1).and_then(|n| base.checked_add(n));
        let Some(last) = last else {
            return Err(BusError::InvalidRange { base, len });
        };
        let at = self.slots.partition_point(|slot| slot.base < base);
        let before = at.checked_sub(1).and_then(|i| self.slots.get(i));
        let overlapping = before
            .filter(|slot| base - slot.base < slot.len)
            .or_else(|| self.slots.get(at).filter(|slot| slot.base <= last));
        if let Some(other) = overlapping {
            return Err(BusError::Overlap {
                base,
                len,
                other_base: other.base,
                other_len: other.len,
            });
        }
        self.slots.insert(at, Slot { base, len, device });
        Ok(())
    }

    /// The device at `address` and the offset of `address` in its range, if
    /// all `len` bytes from there belong to it.
    pub fn find(&self, address: u64, len: usize) -> Option<(&SharedDevice, u64)> {
        let at = self.slots.partition_point(|slot| slot.base <= address);
        let slot = self.slots.get(at.checked_sub(1)?)?;
        let offset = address - slot.base;
        let end = offset.checked_add(len as u64)?;
        (end <= slot.len).then_some((&slot.device, offset))
    }

    /// Reads `data.len()` bytes at `address`. Where no device is, fills `data`
    /// with ones, as hardware does, and returns `false`.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        if let Some((device, offset)) = self.find(address, data.len()) {
            // A device that panicked has no state worth protecting: the
            // machine is on its way down, let this access through.
            let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
            device.read(offset, data);
            return true;
        }
        data.fill(0xff);
        false
    }

    /// Writes `data` at `address`. Returns `false` where no device is.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let Some((device, offset)) = self.find(address, data.len()) else {
            return false;
        };
        let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
        device.write(offset, data);
        true
    }
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ranges = self.slots.iter().map(|slot| (slot.base, slot.len));
        f.debug_list().entries(ranges).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder {
        last: Option<(u64, Vec<u8>)>,
    }

    impl BusDevice for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.last = Some((offset, data.to_vec()));
        }
    }

    fn device() -> Arc<Mutex<Recorder>> {
        Arc::new(Mutex::new(Recorder::default()))
    }

    #[test]
    fn refuses_empty_overflowing_and_overlapping_ranges() {
        let mut bus = Bus::new();
        assert!(matches!(
            bus.insert(1, 0, device()),
            Err(BusError::InvalidRange { .. })
        ));
        assert!(matches!(
            bus.insert(u64::MAX, 2, device()),
            Err(BusError::InvalidRange { .. })
        ));
        bus.insert(0x100, 0x10, device()).unwrap();
        bus.insert(u64::MAX, 1, device()).unwrap();
        for (base, len) in [
            (0x100, 1),
            (0x10f, 1),
            (0xf0, 0x11),
            (0, u64::MAX),
            (0x108, 0x100),
        ] {
            assert!(matches!(
                bus.insert(base, len, device()),
                Err(BusError::Overlap { .. })
            ));
        }
        bus.insert(0xf0, 0x10, device()).unwrap();
        bus.insert(0x110, 0x10, device()).unwrap();
    }

    #[test]
    fn dispatches_by_address_with_relative_offset() {
        let mut bus = Bus::new();
        let (low, high) = (device(), device());
        bus.insert(0x100, 0x10, low.clone()).unwrap();
        bus.insert(0x110, 0x10, high.clone()).unwrap();
        assert!(bus.write(0x113, &[1, 2]));
        assert_eq!(high.lock().unwrap().last, Some((3, vec![1, 2])));
        assert_eq!(low.lock().unwrap().last, None);
        let mut data = [0; 2];
        assert!(bus.read(0x105, &mut data));
        assert_eq!(data, [5, 5]);
    }

    #[test]
    fn nobody_answers_outside_or_across_ranges() {
        let mut bus = Bus::new();
        bus.insert(0x100, 0x10, device()).unwrap();
        bus.insert(0x110, 0x10, device()).unwrap();
        let mut data = [0; 4];
        for address in [0, 0xfe, 0x10e, 0x11d, 0x120, u64::MAX] {
            data.fill(0);
            assert!(!bus.read(address, &mut data), "{address:#x}");
            assert_eq!(data, [0xff; 4]);
            assert!(!bus.write(address, &data));
        }
    }
}

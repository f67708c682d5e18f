//! The MP table (Intel MultiProcessor Specification 1.4, chapter 4): tells a
//! kernel without ACPI which processors and interrupt lines there are.

use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::memory::{GuestMemory, layout};

const FLOATING_POINTER_SIZE: usize = 16;
const HEADER_SIZE: usize = 44;

const SPEC_REVISION: u8 = 4;
/// Version register of the local APIC that KVM emulates: an integrated one.
const LOCAL_APIC_VERSION: u8 = 0x14;
/// Version register of the IOAPIC that KVM emulates.
const IOAPIC_VERSION: u8 = 0x11;

const CPU_ENABLED: u8 = 1;
const CPU_BOOT: u8 = 2;
const CPU_SIGNATURE: u32 = 0x600;
/// FPU and on-chip APIC.
const CPU_FEATURES: u32 = 0x201;

const ISA_BUS: u8 = 0;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Interrupt types (table 4-10).
const VECTORED: u8 = 0;
const NMI: u8 = 1;
const EXTERNAL_INTERRUPT: u8 = 3;

/// The interrupt line of the programmable interval timer.
const TIMER_LINE: u8 = 0;

/// Puts the table for `vcpus` processors, whose APIC identifiers count from 0,
/// into guest memory. Beside the timer there are interrupts on these `lines`:
/// Linux sets up whatever is in the table, needed or not.
pub(super) fn write(memory: &GuestMemory, vcpus: u8, lines: &[u8]) -> Result<(), BootError> {
    memory
        .write_slice(&build(vcpus, lines), GuestAddress(layout::MP_TABLE))
        .map_err(|source| BootError::Memory {
            what: "MP table",
            source,
        })
}

/// Floating pointer structure and configuration table, in one.
fn build(vcpus: u8, lines: &[u8]) -> Vec<u8> {
    let entries = entries(vcpus, lines);
    let mut bytes = Vec::with_capacity(layout::MP_TABLE_MAX as usize);

    bytes.extend_from_slice(b"_MP_");
    bytes
        .extend_from_slice(&(layout::MP_TABLE as u32 + FLOATING_POINTER_SIZE as u32).to_le_bytes());
    // Length in paragraphs, revision, checksum, and no default configuration.
    bytes.extend_from_slice(&[1, SPEC_REVISION, 0, 0, 0, 0, 0, 0]);
    bytes[10] = checksum(&bytes);

    let length = HEADER_SIZE + entries.bytes.len();
    bytes.extend_from_slice(b"PCMP");
    bytes.extend_from_slice(&(length as u16).to_le_bytes());
    bytes.extend_from_slice(&[SPEC_REVISION, 0]);
    bytes.extend_from_slice(b"INSULA  VPS MACHINE ");
    bytes.extend_from_slice(&[0; 6]);
    bytes.extend_from_slice(&entries.count.to_le_bytes());
    bytes.extend_from_slice(&layout::LOCAL_APIC.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&entries.bytes);
    bytes[FLOATING_POINTER_SIZE + 7] = checksum(&bytes[FLOATING_POINTER_SIZE..]);
    bytes
}

#[derive(Default)]
struct Entries {
    bytes: Vec<u8>,
    count: u16,
}

impl Entries {
    fn add(&mut self, entry: &[u8]) {
        self.bytes.extend_from_slice(entry);
        self.count += 1;
    }

    /// An I/O (type 3) or local (type 4) interrupt assignment, edge and
    /// polarity as the bus has them.
    fn interrupt(&mut self, entry_type: u8, kind: u8, irq: u8, apic: u8, pin: u8) {
        self.add(&[entry_type, kind, 0, 0, ISA_BUS, irq, apic, pin]);
    }
}

fn entries(vcpus: u8, lines: &[u8]) -> Entries {
    let mut entries = Entries::default();
    for id in 0..vcpus {
        let mut processor = [0; 20];
        processor[1] = id;
        processor[2] = LOCAL_APIC_VERSION;
        processor[3] = if id == 0 {
            CPU_ENABLED | CPU_BOOT
        } else {
            CPU_ENABLED
        };
        processor[4..8].copy_from_slice(&CPU_SIGNATURE.to_le_bytes());
        processor[8..12].copy_from_slice(&CPU_FEATURES.to_le_bytes());
        entries.add(&processor);
    }
    entries.add(&[1, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    // The IOAPIC's identifier is the first that no processor has.
    let ioapic = vcpus;
    let address = layout::IOAPIC.to_le_bytes();
    entries.add(&[
        2,
        ioapic,
        IOAPIC_VERSION,
        1,
        address[0],
        address[1],
        address[2],
        address[3],
    ]);
    // Every line goes to the pin of its number, which is how KVM routes them.
    for line in [&[TIMER_LINE], lines].concat() {
        entries.interrupt(3, VECTORED, line, ioapic, line);
    }
    entries.interrupt(4, EXTERNAL_INTERRUPT, 0, 0, 0);
    entries.interrupt(4, NMI, 0, ALL_LOCAL_APICS, 1);
    entries
}

/// The byte that makes the sum of all zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn checksums_hold_and_the_table_fits_for_every_count() {
        let lines: Vec<_> = (1..=layout::LAST_GSI as u8).collect();
        for vcpus in 1..=16 {
            let table = build(vcpus, &lines);
            assert_eq!(sum(&table[..16]), 0);
            assert_eq!(sum(&table[16..]), 0);
            assert!(
                table.len() as u64 <= layout::MP_TABLE_MAX,
                "{vcpus}: {}",
                table.len()
            );
            assert_eq!(
                u16::from_le_bytes([table[20], table[21]]) as usize,
                table.len() - 16
            );
        }
    }

    #[test]
    fn processors_count_from_zero_and_the_first_boots() {
        let table = build(3, &[4, 5]);
        let processor = |id: usize| &table[16 + 44 + id * 20..][..20];
        assert_eq!(processor(0)[..4], [0, 0, 0x14, 3]);
        assert_eq!(processor(2)[..4], [0, 2, 0x14, 1]);
        // 3 processors, bus, IOAPIC, 3 lines, 2 local interrupts.
        assert_eq!(u16::from_le_bytes([table[16 + 34], table[16 + 35]]), 10);
    }

    #[test]
    fn only_lines_in_use_are_assigned() {
        let table = build(1, &[4, 23]);
        let assigned: Vec<_> = table[16 + 44 + 20 + 8 + 8..]
            .as_chunks::<8>()
            .0
            .iter()
            .filter(|entry| entry[0] == 3)
            .map(|entry| (entry[5], entry[6], entry[7]))
            .collect();
        assert_eq!(assigned, [(0, 1, 0), (4, 1, 4), (23, 1, 23)]);
    }

    #[test]
    fn floating_pointer_points_behind_itself() {
        let table = build(1, &[]);
        assert_eq!(&table[..4], b"_MP_");
        assert_eq!(table[4..8], 16u32.to_le_bytes());
        assert_eq!(&table[16..20], b"PCMP");
    }
}

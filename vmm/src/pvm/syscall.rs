//! `SYSCALL`, which on a PVM host does everything but become the supervisor.
//!
//! RIP, RCX, R11 and RFLAGS are as they should be, CS and SS are still the
//! user's. So the user fetches from the kernel's entry point, and a page fault
//! enters the guest's kernel instead. From the frame of that page fault a
//! `SYSCALL` is told from all others, and resumed as the processor would have
//! gone on (Intel SDM volume 2B, SYSCALL; AMD APM volume 3, SYSCALL).

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

use crate::boot::long_mode;

/// Selectors for `SYSCALL` and `SYSRET`.
pub(super) const MSR_STAR: u32 = 0xc000_0081;
/// Where `SYSCALL` of 64-bit code goes.
pub(super) const MSR_LSTAR: u32 = 0xc000_0082;
/// Flags that `SYSCALL` clears.
pub(super) const MSR_FMASK: u32 = 0xc000_0084;

/// Bytes of a page fault's frame: error code, RIP, CS, RFLAGS, RSP, SS.
pub(super) const FRAME_SIZE: usize = 6 * 8;

/// The gate of the page fault, in the interrupt descriptor table.
const PAGE_FAULT: u64 = 14;
pub(super) const GATE_SIZE: usize = 16;

/// A fetch by the user from a page that is the supervisor's: present, user,
/// instruction fetch; the last one is only said where pages can forbid it.
const FAULT_OF_SYSCALL: u64 = 0x15;
const FAULT_WITHOUT_FETCH: u64 = 0x05;

const RFLAGS_RESERVED: u64 = 1 << 1;
const RFLAGS_RESUME: u64 = 1 << 16;

/// What the guest has set up for `SYSCALL`, on one processor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) star: u64,
    pub(super) lstar: u64,
    pub(super) fmask: u64,
}

impl Entry {
    /// The register behind an MSR's number.
    pub(super) fn slot(&mut self, msr: u32) -> Option<&mut u64> {
        match msr {
            MSR_STAR => Some(&mut self.star),
            MSR_LSTAR => Some(&mut self.lstar),
            MSR_FMASK => Some(&mut self.fmask),
            _ => None,
        }
    }
}

/// What a processor pushes for a page fault (Intel SDM volume 3, 6.14.2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Frame {
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

impl Frame {
    pub(super) fn parse(bytes: &[u8; FRAME_SIZE]) -> Self {
        let mut words = [0; 6];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let [error_code, rip, cs, rflags, rsp, ss] = words;
        Self {
            error_code,
            rip,
            cs,
            rflags,
            rsp,
            ss,
        }
    }

    /// Whether only a `SYSCALL` can have caused this page fault.
    ///
    /// A user that jumps to the entry point causes the same error code. But it
    /// cannot mask its own flags first, of which every kernel masks the
    /// interrupt flag, nor can it bring along a return address that `SYSRET`
    /// would choke on.
    pub(super) fn is_syscall(&self, entry: &Entry, regs: &kvm_regs) -> bool {
        let masked = regs.r11 & !entry.fmask;
        let uncertain = RFLAGS_RESERVED | RFLAGS_RESUME;
        matches!(self.error_code, FAULT_OF_SYSCALL | FAULT_WITHOUT_FETCH)
            && entry.lstar != 0
            && self.rip == entry.lstar
            && self.cs & 3 == 3
            && self.ss & 3 == 3
            && (self.rflags ^ masked) & !uncertain == 0
            && regs.rcx >> 63 == 0
    }

    /// Puts the processor where `SYSCALL` would have put it.
    pub(super) fn resume(&self, entry: &Entry, regs: &mut kvm_regs, sregs: &mut kvm_sregs) {
        regs.rip = entry.lstar;
        regs.rsp = self.rsp;
        regs.rflags = self.rflags & !RFLAGS_RESUME | RFLAGS_RESERVED;
        let selector = (entry.star >> 32) as u16 & !3;
        sregs.cs = kvm_segment {
            selector,
            ..long_mode::code_segment()
        };
        sregs.ss = kvm_segment {
            selector: selector.wrapping_add(8),
            ..long_mode::data_segment()
        };
    }
}

/// Where the gate of the page fault lies, if the table reaches that far.
pub(super) fn gate_address(sregs: &kvm_sregs) -> Option<u64> {
    let offset = PAGE_FAULT * GATE_SIZE as u64;
    let last = offset + GATE_SIZE as u64 - 1;
    (u64::from(sregs.idt.limit) >= last).then(|| sregs.idt.base.wrapping_add(offset))
}

/// The handler that a gate leads to (Intel SDM volume 3, 6.14.1), if there is
/// one.
pub(super) fn handler(gate: [u8; GATE_SIZE]) -> Option<u64> {
    let gate = u128::from_le_bytes(gate);
    let is_present = gate >> 47 & 1 == 1;
    let is_gate = matches!(gate >> 40 & 0x1f, 0xe | 0xf);
    let offset = (gate & 0xffff) | (gate >> 48 & 0xffff) << 16 | (gate >> 64 & 0xffff_ffff) << 32;
    (is_present && is_gate && offset != 0).then_some(offset as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENTRY: Entry = Entry {
        star: 0x0023_0010_0000_0000,
        lstar: 0xffff_ffff_8180_0040,
        fmask: 0x25_7fd5,
    };

    fn frame() -> Frame {
        Frame {
            error_code: 0x15,
            rip: ENTRY.lstar,
            cs: 0x33,
            rflags: 0x1_0002,
            rsp: 0x7fff_1234_5678,
            ss: 0x2b,
        }
    }

    fn regs() -> kvm_regs {
        kvm_regs {
            rip: 0xffff_ffff_8180_0aa0,
            rcx: 0x40_1002,
            r11: 0x246,
            rsp: 0xffff_fe00_0000_2fd0,
            ..kvm_regs::default()
        }
    }

    fn bytes(frame: Frame) -> [u8; FRAME_SIZE] {
        let words = [
            frame.error_code,
            frame.rip,
            frame.cs,
            frame.rflags,
            frame.rsp,
            frame.ss,
        ];
        let mut bytes = [0; FRAME_SIZE];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_syscall_is_resumed_at_its_entry_point() {
        let frame = Frame::parse(&bytes(frame()));
        let (mut regs, mut sregs) = (regs(), kvm_sregs::default());
        assert!(frame.is_syscall(&ENTRY, &regs));
        frame.resume(&ENTRY, &mut regs, &mut sregs);
        assert_eq!(
            (regs.rip, regs.rsp, regs.rflags, regs.rcx, regs.r11),
            (ENTRY.lstar, 0x7fff_1234_5678, 2, 0x40_1002, 0x246)
        );
        assert_eq!((sregs.cs.selector, sregs.cs.dpl, sregs.cs.l), (0x10, 0, 1));
        assert_eq!((sregs.ss.selector, sregs.ss.dpl), (0x18, 0));
    }

    #[test]
    fn other_faults_and_forged_frames_are_not_syscalls() {
        let forged: [fn(&mut Frame); 9] = [
            |f| f.error_code = 0x14,
            |f| f.error_code = 0x11,
            |f| f.error_code |= 1 << 40,
            |f| f.rip += 1,
            // The kernel's own fault, at its own entry point.
            |f| f.cs = 0x10,
            |f| f.ss = 0x18,
            // A user that jumped here: its interrupts are on.
            |f| f.rflags |= 1 << 9,
            // A flag that it did not have.
            |f| f.rflags |= 1 << 18,
            |f| f.rip = 0,
        ];
        for forge in forged {
            let mut frame = frame();
            forge(&mut frame);
            assert!(!frame.is_syscall(&ENTRY, &regs()), "{frame:x?}");
        }
        let far_return = kvm_regs {
            rcx: 0x8000_0000_0000_0000,
            ..regs()
        };
        assert!(!frame().is_syscall(&ENTRY, &far_return));
        assert!(!Frame::default().is_syscall(&Entry::default(), &kvm_regs::default()));
    }

    #[test]
    fn gates_lead_to_their_handlers() {
        let gate =
            0xffff_ffff_u128 << 64 | 0x8180_u128 << 48 | 0x8e00_u128 << 32 | 0x10 << 16 | 0x0aa0;
        assert_eq!(handler(gate.to_le_bytes()), Some(0xffff_ffff_8180_0aa0));
        assert_eq!(handler((gate & !(1 << 47)).to_le_bytes()), None);
        assert_eq!(handler([0; GATE_SIZE]), None);
        let mut sregs = kvm_sregs::default();
        sregs.idt.base = 0x1000;
        sregs.idt.limit = 0xee;
        assert_eq!(gate_address(&sregs), None);
        sregs.idt.limit = 0xef;
        assert_eq!(gate_address(&sregs), Some(0x10e0));
    }

    proptest! {
        /// Whatever a guest puts on its stack: only what a `SYSCALL` leaves
        /// makes a supervisor of a user, and always at the entry point.
        #[test]
        fn no_frame_leads_anywhere_but_to_the_entry_point(
            words: [u64; 6], pick: [bool; 6], rcx: u64, r11: u64, star: u64, fmask: u64,
        ) {
            let genuine = bytes(frame());
            let mut bytes = genuine;
            for (index, (word, pick)) in words.iter().zip(pick).enumerate() {
                if pick {
                    bytes[index * 8..][..8].copy_from_slice(&word.to_le_bytes());
                }
            }
            let frame = Frame::parse(&bytes);
            let entry = Entry { star, fmask: fmask | 1 << 9, ..ENTRY };
            let mut regs = kvm_regs { rcx, r11, ..regs() };
            let mut sregs = kvm_sregs::default();
            if frame.is_syscall(&entry, &regs) {
                prop_assert_eq!(frame.rflags & 1 << 9, 0);
                prop_assert_eq!(frame.cs & 3, 3);
                frame.resume(&entry, &mut regs, &mut sregs);
                prop_assert_eq!(regs.rip, ENTRY.lstar);
                prop_assert_eq!(sregs.cs.selector & 3, 0);
                prop_assert_eq!(regs.rcx, rcx);
            }
        }
    }
}

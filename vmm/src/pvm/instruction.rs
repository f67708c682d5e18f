//! Instructions that the emulator refuses: the few that are carried out here,
//! and a name for all others.

use iced_x86::{
    Code, Decoder, DecoderOptions, FastFormatter, Instruction, MemorySize, OpKind, Register,
};
use kvm_bindings::{kvm_regs, kvm_sregs};

/// Bytes that an instruction has at most.
pub(super) const MAX_LENGTH: usize = 15;

/// Flags of RFLAGS (Intel SDM volume 1, 3.4.3).
const CARRY: u64 = 1 << 0;
const PARITY: u64 = 1 << 2;
const ADJUST: u64 = 1 << 4;
pub(super) const ZERO: u64 = 1 << 6;
const SIGN: u64 = 1 << 7;
const OVERFLOW: u64 = 1 << 11;
/// All that POPCNT writes.
const POPCNT_WRITES: u64 = CARRY | PARITY | ADJUST | ZERO | SIGN | OVERFLOW;

/// What is to be done for an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// `int3`: the breakpoint trap.
    Breakpoint,
    /// `fwait`: exceptions of the x87 unit that are pending.
    Wait,
    /// `popcnt`.
    Popcnt {
        /// What is counted.
        source: Source,
        /// The register that gets the count.
        destination: Register,
    },
    /// `cmpxchg16b` of these sixteen bytes.
    CompareExchange16 {
        /// Their linear address.
        address: u64,
    },
    /// `xsave`, `xsave64`.
    SaveState(StateArea),
    /// `xrstor`, `xrstor64`.
    RestoreState(StateArea),
    /// `xgetbv`.
    ReadFeatures,
}

/// Where the extended state is saved to or restored from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StateArea {
    /// Its linear address.
    pub(super) address: u64,
    /// Whether pointers of the x87 unit have 64 bits in it.
    pub(super) is_wide: bool,
}

/// Where an operand comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A value of a register.
    Value(u64),
    /// So many bytes at a linear address.
    Memory(u64, usize),
}

/// A decoded instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decoded {
    /// Its length, in bytes.
    pub(super) length: u64,
    /// What is to be done; `None` for what is not on the list.
    pub(super) work: Option<Work>,
}

/// Decodes the instruction that a processor with these registers is at.
/// `None` when the bytes are no instruction.
pub(super) fn decode(bytes: &[u8], regs: &kvm_regs, sregs: &kvm_sregs) -> Option<Decoded> {
    let instruction = parse(bytes, regs.rip, sregs)?;
    let address = |operand| linear_address(&instruction, operand, regs, sregs);
    let area = |is_wide| address(0).map(|address| StateArea { address, is_wide });
    let work = match instruction.code() {
        Code::Int3 => Some(Work::Breakpoint),
        Code::Wait => Some(Work::Wait),
        Code::Popcnt_r16_rm16 | Code::Popcnt_r32_rm32 | Code::Popcnt_r64_rm64 => {
            let source = if instruction.op1_kind() == OpKind::Memory {
                address(1).map(|address| Source::Memory(address, size(instruction.op0_register())))
            } else {
                register(instruction.op1_register(), regs, sregs).map(Source::Value)
            };
            source.map(|source| Work::Popcnt {
                source,
                destination: instruction.op0_register(),
            })
        }
        Code::Cmpxchg16b_m128 if instruction.memory_size() == MemorySize::UInt128 => {
            address(0).map(|address| Work::CompareExchange16 { address })
        }
        Code::Xsave_mem => area(false).map(Work::SaveState),
        Code::Xsave64_mem => area(true).map(Work::SaveState),
        Code::Xrstor_mem => area(false).map(Work::RestoreState),
        Code::Xrstor64_mem => area(true).map(Work::RestoreState),
        Code::Xgetbv => Some(Work::ReadFeatures),
        _ => None,
    };
    Some(Decoded {
        length: instruction.len() as u64,
        work,
    })
}

/// The instruction as an assembler would have it.
pub(super) fn text(bytes: &[u8], rip: u64, sregs: &kvm_sregs) -> Option<String> {
    let instruction = parse(bytes, rip, sregs)?;
    let mut text = String::new();
    FastFormatter::new().format(&instruction, &mut text);
    Some(text)
}

/// The length of an instruction that does nothing but, perhaps, clear a flag,
/// and the flag: what a handler may begin with.
pub(super) fn harmless(bytes: &[u8], rip: u64, sregs: &kvm_sregs) -> Option<(u64, u64)> {
    const DIRECTION: u64 = 1 << 10;
    const ALIGNMENT_CHECK: u64 = 1 << 18;
    let instruction = parse(bytes, rip, sregs)?;
    let clears = match instruction.code() {
        Code::Endbr64
        | Code::Nopd
        | Code::Nopq
        | Code::Nopw
        | Code::Nop_rm16
        | Code::Nop_rm32
        | Code::Nop_rm64 => 0,
        Code::Cld => DIRECTION,
        Code::Clac => ALIGNMENT_CHECK,
        _ => return None,
    };
    Some((instruction.len() as u64, clears))
}

fn parse(bytes: &[u8], rip: u64, sregs: &kvm_sregs) -> Option<Instruction> {
    let bits = match (sregs.cs.l, sregs.cs.db) {
        (0, 0) => 16,
        (0, _) => 32,
        _ => 64,
    };
    let bytes = bytes.get(..MAX_LENGTH).unwrap_or(bytes);
    let mut decoder = Decoder::try_with_ip(bits, bytes, rip, DecoderOptions::NONE).ok()?;
    let instruction = decoder.decode();
    (!instruction.is_invalid()).then_some(instruction)
}

/// The linear address of that operand, which is in memory, in 64-bit code.
fn linear_address(
    instruction: &Instruction,
    operand: u32,
    regs: &kvm_regs,
    sregs: &kvm_sregs,
) -> Option<u64> {
    if sregs.cs.l == 0 {
        return None;
    }
    instruction.try_virtual_address(operand, 0, |name, _, _| register(name, regs, sregs))
}

/// The value of a general register, or of a segment's base.
fn register(name: Register, regs: &kvm_regs, sregs: &kvm_sregs) -> Option<u64> {
    // Only these two segments have a base in 64-bit code.
    match name {
        Register::FS => return Some(sregs.fs.base),
        Register::GS => return Some(sregs.gs.base),
        Register::CS | Register::DS | Register::ES | Register::SS => return Some(0),
        _ => {}
    }
    let full = *slot(name, &mut { *regs })?;
    match size(name) {
        8 => Some(full),
        4 => Some(full & 0xffff_ffff),
        _ => Some(full & 0xffff),
    }
}

/// Writes a general register: 32 bits clear the upper half, 16 bits keep what
/// is above them.
fn set_register(name: Register, value: u64, regs: &mut kvm_regs) {
    if let Some(slot) = slot(name, regs) {
        *slot = match size(name) {
            8 => value,
            4 => value & 0xffff_ffff,
            _ => *slot & !0xffff | value & 0xffff,
        };
    }
}

/// Bytes of a general register of at least two.
fn size(name: Register) -> usize {
    match name as usize {
        n if n >= Register::RAX as usize => 8,
        n if n >= Register::EAX as usize => 4,
        _ => 2,
    }
}

/// The whole register that a general register of at least two bytes is part
/// of.
fn slot(name: Register, regs: &mut kvm_regs) -> Option<&mut u64> {
    let number = [Register::RAX, Register::EAX, Register::AX]
        .into_iter()
        .find_map(|first| (name as usize).checked_sub(first as usize))
        .filter(|number| *number < 16)?;
    // Numbered as instructions encode them.
    Some(match number {
        0 => &mut regs.rax,
        1 => &mut regs.rcx,
        2 => &mut regs.rdx,
        3 => &mut regs.rbx,
        4 => &mut regs.rsp,
        5 => &mut regs.rbp,
        6 => &mut regs.rsi,
        7 => &mut regs.rdi,
        8 => &mut regs.r8,
        9 => &mut regs.r9,
        10 => &mut regs.r10,
        11 => &mut regs.r11,
        12 => &mut regs.r12,
        13 => &mut regs.r13,
        14 => &mut regs.r14,
        _ => &mut regs.r15,
    })
}

/// Counts the bits of `value` into `destination`, with POPCNT's flags: all
/// clear but ZF, which says that there were none.
pub(super) fn popcnt(value: u64, destination: Register, regs: &mut kvm_regs) {
    set_register(destination, u64::from(value.count_ones()), regs);
    regs.rflags &= !POPCNT_WRITES;
    if value == 0 {
        regs.rflags |= ZERO;
    }
}

/// The two operands of CMPXCHG16B: RDX:RAX, then RCX:RBX.
pub(super) fn compare_exchange_operands(regs: &kvm_regs) -> (u128, u128) {
    (
        u128::from(regs.rdx) << 64 | u128::from(regs.rax),
        u128::from(regs.rcx) << 64 | u128::from(regs.rbx),
    )
}

/// What CMPXCHG16B leaves in the registers when memory was `was`.
pub(super) fn compare_exchange_result(was: u128, regs: &mut kvm_regs) {
    let (compared, _) = compare_exchange_operands(regs);
    if was == compared {
        regs.rflags |= ZERO;
    } else {
        regs.rflags &= !ZERO;
        (regs.rdx, regs.rax) = ((was >> 64) as u64, was as u64);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn long_mode() -> kvm_sregs {
        let mut sregs = kvm_sregs::default();
        sregs.cs.l = 1;
        sregs.fs.base = 0x1000;
        sregs.gs.base = 0x2000;
        sregs
    }

    fn regs() -> kvm_regs {
        kvm_regs {
            rax: 0x1111_2222_3333_4444,
            rcx: 0xf0f0_ffff_0000_0003,
            rdi: 0x9000,
            rsi: 2,
            rip: 0x7000,
            rflags: u64::MAX,
            ..kvm_regs::default()
        }
    }

    fn work(bytes: &[u8]) -> Option<Work> {
        decode(bytes, &regs(), &long_mode()).and_then(|decoded| decoded.work)
    }

    #[test]
    fn the_list_is_recognised() {
        assert_eq!(work(&[0xcc]), Some(Work::Breakpoint));
        assert_eq!(work(&[0x9b]), Some(Work::Wait));
        // popcnt eax, ecx; popcnt r8, [gs:rdi + rsi*4 + 0x10]; popcnt ax, cx.
        assert_eq!(
            work(&[0xf3, 0x0f, 0xb8, 0xc1]),
            Some(Work::Popcnt {
                source: Source::Value(3),
                destination: Register::EAX
            })
        );
        assert_eq!(
            work(&[0x65, 0xf3, 0x4c, 0x0f, 0xb8, 0x44, 0xb7, 0x10]),
            Some(Work::Popcnt {
                source: Source::Memory(0xb018, 8),
                destination: Register::R8
            })
        );
        assert_eq!(
            work(&[0x66, 0xf3, 0x0f, 0xb8, 0xc1]),
            Some(Work::Popcnt {
                source: Source::Value(3),
                destination: Register::AX
            })
        );
        // lock cmpxchg16b [rdi]; cmpxchg16b [rip + 8].
        let exchange = |address| Some(Work::CompareExchange16 { address });
        assert_eq!(work(&[0xf0, 0x48, 0x0f, 0xc7, 0x0f]), exchange(0x9000));
        assert_eq!(
            work(&[0x48, 0x0f, 0xc7, 0x0d, 8, 0, 0, 0]),
            exchange(0x7010)
        );
        // xsave [rdi]; xsave64 [rdi + 0x40]; xrstor [rdi]; xrstor64 [rdi]; xgetbv.
        let area = |address, is_wide| StateArea { address, is_wide };
        for (bytes, expected) in [
            (
                &[0x0f, 0xae, 0x27][..],
                Work::SaveState(area(0x9000, false)),
            ),
            (
                &[0x48, 0x0f, 0xae, 0x67, 0x40],
                Work::SaveState(area(0x9040, true)),
            ),
            (&[0x0f, 0xae, 0x2f], Work::RestoreState(area(0x9000, false))),
            (
                &[0x48, 0x0f, 0xae, 0x2f],
                Work::RestoreState(area(0x9000, true)),
            ),
            (&[0x0f, 0x01, 0xd0], Work::ReadFeatures),
        ] {
            assert_eq!(work(bytes), Some(expected), "{bytes:x?}");
        }
    }

    #[test]
    fn neighbours_of_the_list_are_not_on_it() {
        for bytes in [
            &[0xcd, 3][..],                  // int 3
            &[0x0f, 0xc7, 0x0f],             // cmpxchg8b [rdi]
            &[0xf3, 0x0f, 0xbc, 0xc1],       // tzcnt eax, ecx
            &[0x0f, 0xae, 0x37],             // xsaveopt [rdi]
            &[0x48, 0x0f, 0xc7, 0x27],       // xsavec64 [rdi]
            &[0x0f, 0xc7, 0x1f],             // xrstors [rdi]
            &[0x0f, 0xae, 0xef],             // lfence
            &[0xf0, 0xf3, 0x0f, 0xb8, 0xc1], // lock popcnt: no instruction
            &[0xf3, 0x0f],                   // half of one
            &[0x48, 0x0f, 0xc7, 0xc9],       // cmpxchg16b of a register
        ] {
            assert_eq!(work(bytes), None, "{bytes:x?}");
        }
        // In 32-bit code memory operands are left alone.
        let sregs = kvm_sregs::default();
        let decoded = decode(&[0xf3, 0x0f, 0xb8, 0x07], &regs(), &sregs).unwrap();
        assert_eq!(decoded.work, None);
    }

    #[test]
    fn an_instruction_has_a_name() {
        let name = text(&[0x0f, 0xc7, 0x1f], 0x7000, &long_mode()).unwrap();
        assert!(name.starts_with("xrstors"), "{name}");
        assert_eq!(text(&[0x06], 0x7000, &long_mode()), None);
    }

    #[test]
    fn what_a_handler_begins_with_is_stepped_over() {
        let step = |bytes: &[u8]| harmless(bytes, 0x7000, &long_mode());
        assert_eq!(step(&[0xf3, 0x0f, 0x1e, 0xfa, 0xfc]), Some((4, 0)));
        assert_eq!(step(&[0x0f, 0x1f, 0x00]), Some((3, 0)));
        assert_eq!(step(&[0x90]), Some((1, 0)));
        assert_eq!(step(&[0xfc]), Some((1, 1 << 10)));
        assert_eq!(step(&[0x0f, 0x01, 0xca]), Some((3, 1 << 18)));
        assert_eq!(step(&[0x50]), None);
        assert_eq!(step(&[0x0f, 0x01, 0xf8]), None);
        assert_eq!(step(&[]), None);
    }

    #[test]
    fn counting_sets_exactly_its_flags() {
        let mut registers = regs();
        popcnt(0, Register::R8, &mut registers);
        assert_eq!((registers.r8, registers.rflags), (0, !POPCNT_WRITES | ZERO));
        popcnt(0xff, Register::AX, &mut registers);
        assert_eq!(registers.rax, 0x1111_2222_3333_0008);
        assert_eq!(registers.rflags, !POPCNT_WRITES);
        popcnt(1, Register::EAX, &mut registers);
        assert_eq!(registers.rax, 1);
    }

    #[test]
    fn comparing_changes_only_the_zero_flag() {
        let mut registers = kvm_regs {
            rax: 1,
            rdx: 2,
            rflags: CARRY | SIGN,
            ..kvm_regs::default()
        };
        let was = 2u128 << 64 | 1;
        compare_exchange_result(was, &mut registers);
        assert_eq!(registers.rflags, CARRY | SIGN | ZERO);
        compare_exchange_result(was + 7, &mut registers);
        assert_eq!(registers.rflags, CARRY | SIGN);
        assert_eq!((registers.rax, registers.rdx), (8, 2));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_mode_are_decoded_or_not(
            bytes in prop::collection::vec(any::<u8>(), 0..32),
            rip: u64, l in 0u8..2, db in 0u8..2,
        ) {
            let mut sregs = long_mode();
            (sregs.cs.l, sregs.cs.db) = (l, db);
            let regs = kvm_regs { rip, ..regs() };
            if let Some(decoded) = decode(&bytes, &regs, &sregs) {
                prop_assert!((1..=MAX_LENGTH as u64).contains(&decoded.length));
                prop_assert!(decoded.length <= bytes.len() as u64);
                prop_assert!(text(&bytes, rip, &sregs).is_some());
            }
            if let Some((length, _)) = harmless(&bytes, rip, &sregs) {
                prop_assert!(length <= bytes.len() as u64);
            }
        }
    }
}

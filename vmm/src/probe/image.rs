//! The memory of the micro-guests: tables of long mode and a few instructions.

use super::Repair;

/// Bytes of guest memory.
pub(super) const SIZE: usize = 0x1_0000;

pub(super) const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
const PAGE_TABLE: u64 = 0x4000;
pub(super) const GDT: u64 = 0x5000;
pub(super) const IDT: u64 = 0x6000;
/// Code that only the supervisor may execute.
pub(super) const SUPERVISOR_CODE: u64 = 0x7000;
/// Code that the user may execute.
pub(super) const USER_CODE: u64 = 0x8000;
/// An empty page: data for instructions that need some.
pub(super) const DATA: u64 = 0x9000;
/// Top of the stack.
pub(super) const STACK: u64 = 0xb000;

/// Where `SYSCALL` should arrive.
pub(super) const SYSCALL_ENTRY: u64 = SUPERVISOR_CODE;
/// A loop of two instructions, counted down in RCX.
pub(super) const LOOP: u64 = SUPERVISOR_CODE + 0x100;
/// Where an instruction under test is put.
pub(super) const TESTED: u64 = SUPERVISOR_CODE + 0x200;
/// Handler of the breakpoint exception.
const BREAKPOINT_HANDLER: u64 = SUPERVISOR_CODE;

/// The port on which a micro-guest says that it arrived.
pub(super) const ARRIVED_PORT: u16 = 0xf4;

/// `out 0xf4, al`, then `hlt` for ever.
const ARRIVED: [u8; 5] = [0xe6, ARRIVED_PORT as u8, 0xf4, 0xeb, 0xfd];
/// `1: dec rcx; jnz 1b`.
const LOOP_CODE: [u8; 5] = [0x48, 0xff, 0xc9, 0x75, 0xfb];
/// `syscall`, then `hlt`, which the user may not.
const USER: [u8; 3] = [0x0f, 0x05, 0xf4];

/// Instructions that an emulator may refuse.
pub(super) const INSTRUCTIONS: [(Repair, &[u8]); 4] = [
    // int3, to the handler.
    (Repair::Int3, &[0xcc]),
    // fwait.
    (Repair::Fwait, &[0x9b]),
    // popcnt eax, ecx.
    (Repair::Popcnt, &[0xf3, 0x0f, 0xb8, 0xc1]),
    // lock cmpxchg16b [rdi].
    (Repair::Cmpxchg16b, &[0xf0, 0x48, 0x0f, 0xc7, 0x0f]),
];

pub(super) const KERNEL_CODE_SELECTOR: u16 = 0x10;
pub(super) const USER_DATA_SELECTOR: u16 = 0x2b;
pub(super) const USER_CODE_SELECTOR: u16 = 0x33;
/// Kernel code and data, user data and code, as `SYSCALL` wants them in order.
const DESCRIPTORS: [u64; 7] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
];
pub(super) const GDT_LIMIT: u16 = (DESCRIPTORS.len() * 8 - 1) as u16;
/// Gates 0 to 3.
pub(super) const IDT_LIMIT: u16 = 4 * 16 - 1;

const PRESENT_WRITABLE: u64 = 0b011;
const USER_ACCESSIBLE: u64 = 0b100;
/// Accessed and dirty: nobody has to write them.
const USED: u64 = 0b110_0000;

/// The whole memory, without an instruction under test.
pub(super) fn build() -> Vec<u8> {
    let mut image = vec![0; SIZE];
    let table = PRESENT_WRITABLE | USER_ACCESSIBLE | USED;
    put(&mut image, PML4, &(PDPT | table).to_le_bytes());
    put(&mut image, PDPT, &(PAGE_DIRECTORY | table).to_le_bytes());
    put(
        &mut image,
        PAGE_DIRECTORY,
        &(PAGE_TABLE | table).to_le_bytes(),
    );
    for page in 0..SIZE as u64 / 0x1000 {
        let address = page << 12;
        let user = if address == USER_CODE {
            USER_ACCESSIBLE
        } else {
            0
        };
        let entry = address | PRESENT_WRITABLE | user | USED;
        put(&mut image, PAGE_TABLE + page * 8, &entry.to_le_bytes());
    }
    for (index, descriptor) in (0u64..).zip(DESCRIPTORS) {
        put(&mut image, GDT + index * 8, &descriptor.to_le_bytes());
    }
    put(
        &mut image,
        IDT + 3 * 16,
        &interrupt_gate(BREAKPOINT_HANDLER).to_le_bytes(),
    );
    put(&mut image, SYSCALL_ENTRY, &ARRIVED);
    put(&mut image, LOOP, &[&LOOP_CODE[..], &ARRIVED].concat());
    put(&mut image, USER_CODE, &USER);
    image
}

/// Code that says that it arrived after it has carried out `instruction`.
pub(super) fn tested(instruction: &[u8]) -> Vec<u8> {
    [instruction, &ARRIVED].concat()
}

/// A 64-bit interrupt gate (Intel SDM volume 3, 6.14.1).
fn interrupt_gate(handler: u64) -> u128 {
    let handler = u128::from(handler);
    (handler & 0xffff)
        | u128::from(KERNEL_CODE_SELECTOR) << 16
        | 0x8e00 << 32
        | (handler >> 16 & 0xffff) << 48
        | (handler >> 32) << 64
}

fn put(image: &mut [u8], address: u64, bytes: &[u8]) {
    let start = address as usize;
    image[start..start + bytes.len()].copy_from_slice(bytes);
}

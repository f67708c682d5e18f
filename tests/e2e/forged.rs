//! A kernel that goes to its own handler of page faults, with a frame on its
//! stack that it has made up: what a PVM host takes for a system call.

use std::arch::global_asm;
use std::ffi::c_void;

use crate::elf;

/// What is on the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame {
    /// All that a `SYSCALL` leaves there.
    Perfect = 0,
    /// The same, but it comes from the supervisor.
    OfSupervisor = 1,
    /// Nothing: the stack lies beyond the guest's memory, of 512 MiB.
    OutsideMemory = 2,
    /// Nothing: the stack lies where no page is.
    Unmapped = 3,
}

// Resets the machine when it comes to where its system calls go, and ends in a triple
// fault when it goes on in its handler. The first instruction's operand says which frame.
global_asm!(
    ".pushsection .rodata.insula_forged, \"a\"",
    "insula_forged_begin:",
    "mov ebx, 0x11111111",
    // Gate 14 of a table at 17 MiB: a present interrupt gate to 0x10:handler.
    "mov edi, 0x11000e0",
    "lea rax, [rip + 8f]",
    "mov [rdi], ax",
    "mov word ptr [rdi + 2], 0x10",
    "mov word ptr [rdi + 4], 0x8e00",
    "shr rax, 16",
    "mov [rdi + 6], ax",
    "shr rax, 16",
    "mov [rdi + 8], eax",
    "lidt [rip + 6f]",
    // STAR: the kernel's segments; FMASK: the interrupt flag; LSTAR.
    "mov ecx, 0xc0000081",
    "xor eax, eax",
    "mov edx, 0x10",
    "wrmsr",
    "mov ecx, 0xc0000084",
    "mov eax, 0x200",
    "xor edx, edx",
    "wrmsr",
    "mov ecx, 0xc0000082",
    "lea rax, [rip + 9f]",
    "wrmsr",
    // Error code, RIP, CS, RFLAGS, RSP, SS.
    "mov esp, 0x1200000",
    "mov qword ptr [rsp], 0x15",
    "mov [rsp + 8], rax",
    "mov qword ptr [rsp + 16], 0x33",
    "mov qword ptr [rsp + 24], 0x10002",
    "mov qword ptr [rsp + 32], 0x1300000",
    "mov qword ptr [rsp + 40], 0x2b",
    "mov r11d, 0x202",
    "mov ecx, 0x1000000",
    "cmp ebx, 1",
    "jne 2f",
    "mov qword ptr [rsp + 16], 0x10",
    "2:",
    "cmp ebx, 2",
    "jne 3f",
    "mov esp, 0x3ffff000",
    "3:",
    "cmp ebx, 3",
    "jne 4f",
    "movabs rsp, 0xffff800000000000",
    "4:",
    "jmp 8f",
    // The table of interrupts, and none.
    "6:",
    ".short 0xfff",
    ".quad 0x1100000",
    "7:",
    ".short 0",
    ".quad 0",
    // The handler of page faults.
    "8:",
    "cld",
    "lidt [rip + 7b]",
    "ud2",
    // Where system calls go.
    "9:",
    "mov al, 0xfe",
    "out 0x64, al",
    "5:",
    "hlt",
    "jmp 5b",
    "insula_forged_end:",
    ".popsection",
);

unsafe extern "C" {
    #[link_name = "insula_forged_begin"]
    static BEGIN: c_void;
    #[link_name = "insula_forged_end"]
    static END: c_void;
}

/// The kernel.
pub(crate) fn kernel(frame: Frame) -> Vec<u8> {
    let (begin, end) = (&raw const BEGIN, &raw const END);
    let length = end.addr() - begin.addr();
    // SAFETY: the two symbols are the ends of the read-only code above.
    let code = unsafe { std::slice::from_raw_parts(begin.cast::<u8>(), length) };
    let mut code = code.to_vec();
    // Behind the opcode of `mov ebx`.
    code[1..5].copy_from_slice(&(frame as u32).to_le_bytes());
    elf::executable(0x100_0000, &code)
}

//! A program that keeps a pattern in a vector register and looks whether it
//! stays there, as machine code for any Linux: nothing that a test would have
//! to compile or find first.

use std::arch::global_asm;
use std::ffi::c_void;

use crate::elf;

// `vector C`: keeps the letter C in all bytes of a YMM register while it yields
// and counts, two hundred times over. Exits with 0 if the letter was there each
// time, with 1 if something else was.
global_asm!(
    ".pushsection .rodata.insula_vector, \"a\"",
    "insula_vector_begin:",
    "mov rax, [rsp + 16]",
    "movzx eax, byte ptr [rax]",
    "vmovd xmm7, eax",
    "vpxor xmm6, xmm6, xmm6",
    "vpshufb xmm7, xmm7, xmm6",
    "vinsertf128 ymm7, ymm7, xmm7, 1",
    "sub rsp, 64",
    "vmovups [rsp], ymm7",
    "mov ebx, 200",
    "2:",
    // sched_yield
    "mov eax, 24",
    "syscall",
    // Long enough to be interrupted now and then.
    "mov ecx, 400000",
    "3:",
    "dec ecx",
    "jnz 3b",
    "vmovups ymm6, [rsp]",
    "vxorps ymm6, ymm6, ymm7",
    "vptest ymm6, ymm6",
    "mov edi, 1",
    "jnz 4f",
    "dec ebx",
    "jnz 2b",
    "xor edi, edi",
    "4:",
    // exit_group
    "mov eax, 231",
    "syscall",
    "insula_vector_end:",
    ".popsection",
);

unsafe extern "C" {
    #[link_name = "insula_vector_begin"]
    static BEGIN: c_void;
    #[link_name = "insula_vector_end"]
    static END: c_void;
}

/// The program, as an executable.
pub(crate) fn program() -> Vec<u8> {
    let (begin, end) = (&raw const BEGIN, &raw const END);
    let length = end.addr() - begin.addr();
    // SAFETY: the two symbols are the ends of the read-only code above.
    let code = unsafe { std::slice::from_raw_parts(begin.cast::<u8>(), length) };
    elf::executable(0x40_0000, code)
}

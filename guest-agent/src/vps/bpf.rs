//! `bpf(2)`, as far as programs for a cgroup's devices need it.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;

use super::raw::check;

type Result<T> = std::result::Result<T, Errno>;

/// An instruction of the kernel's machine, `struct bpf_insn` of linux/bpf.h.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    /// The destination in the low half, the source in the high one.
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) value: i32,
}

/// What of `union bpf_attr` `BPF_PROG_LOAD` reads.
#[repr(C)]
struct ProgramLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    version_and_flags: u64,
    name: [u8; 16],
    interface: u32,
    attach: u32,
}

/// Loads a program that answers for a cgroup's devices.
pub(crate) fn load(program: &[Instruction]) -> Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    let load = ProgramLoad {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log: [0; 2],
        version_and_flags: 0,
        name: *b"insula_devices\0\0",
        interface: 0,
        attach: BPF_CGROUP_DEVICE,
    };
    // SAFETY: the kernel reads a structure of the size that is given, and the
    // instructions and the licence's name that it points to; it checks them.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            ptr::from_ref(&load),
            size_of::<ProgramLoad>(),
        )
    })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The attach type of programs that answer for devices.
const BPF_CGROUP_DEVICE: u32 = 6;

/// Lets a program answer for a cgroup and all below, in place of an earlier.
pub(crate) fn attach(cgroup: BorrowedFd<'_>, program: &OwnedFd) -> Result<()> {
    const BPF_PROG_ATTACH: libc::c_long = 8;
    let attach = [
        cgroup.as_raw_fd() as u32,
        program.as_raw_fd() as u32,
        BPF_CGROUP_DEVICE,
        0,
    ];
    // SAFETY: the kernel reads as many bytes as are given.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            attach.as_ptr(),
            size_of_val(&attach),
        )
    })
    .map(drop)
}

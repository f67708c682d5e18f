//! Which devices VPSs may open: a program that the kernel asks about every
//! opening of a device node, wherever the node came from (a crafted image, a
//! file system that a VPS mounts itself).
//!
//! All VPSs have the same devices, so that the program is attached once, to
//! the cgroup above them all.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::bpf::{self, Instruction};
use super::mounts::{DEVICES, OPTIONAL_DEVICES};

/// The devices of every VPS's terminals: `/dev/console`, `/dev/ptmx`.
const TERMINALS: &[(u32, u32)] = &[(5, 1), (5, 2)];
/// Major number of the terminals of all devpts instances.
const PTS: u32 = 136;

// Of linux/bpf.h, `struct bpf_cgroup_dev_ctx`: the access in the high half and
// the type of the device in the low half of the first field.
const ACCESS_AND_TYPE: i16 = 0;
const MAJOR: i16 = 4;
const MINOR: i16 = 8;
const CHARACTER_DEVICE: i32 = 2;
const ACCESS_MKNOD: i32 = 1;

// Opcodes: class, operation and source as in linux/bpf_common.h.
const LOAD_WORD: u8 = 0x61;
const COPY: u8 = 0xbf;
const SET: u8 = 0xb7;
const SHIFT_RIGHT: u8 = 0x77;
const AND: u8 = 0x57;
const SKIP_IF_EQUAL: u8 = 0x15;
const SKIP_UNLESS_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

const fn instruction(code: u8, registers: u8, offset: i16, value: i32) -> Instruction {
    Instruction {
        code,
        registers,
        offset,
        value,
    }
}

/// Says yes to making nodes, which is harmless without opening them and which
/// unpacking an archive wants; to reading and writing the devices of
/// [`DEVICES`] and terminals; to nothing else.
fn program() -> Vec<Instruction> {
    const ANSWER: u8 = 0;
    const CONTEXT: u8 = 1;
    const ACCESS: u8 = 2;
    const TYPE: u8 = 3;
    const DEVICE_MAJOR: u8 = 4;
    const DEVICE_MINOR: u8 = 5;
    let load = |to: u8, from: i16| instruction(LOAD_WORD, to | CONTEXT << 4, from, 0);
    let answer = |yes: i32| [instruction(SET, ANSWER, 0, yes), instruction(EXIT, 0, 0, 0)];
    let unless = |register, value: i32, skip| instruction(SKIP_UNLESS_EQUAL, register, skip, value);

    let mut program = vec![
        load(TYPE, ACCESS_AND_TYPE),
        instruction(COPY, ACCESS | TYPE << 4, 0, 0),
        instruction(SHIFT_RIGHT, ACCESS, 0, 16),
        instruction(AND, TYPE, 0, 0xffff),
        load(DEVICE_MAJOR, MAJOR),
        load(DEVICE_MINOR, MINOR),
        unless(ACCESS, ACCESS_MKNOD, 2),
    ];
    program.extend(answer(1));
    program.push(instruction(SKIP_IF_EQUAL, TYPE, 2, CHARACTER_DEVICE));
    program.extend(answer(0));
    let devices = DEVICES.iter().chain(OPTIONAL_DEVICES);
    let devices = devices.map(|(_, major, minor)| (*major, *minor));
    for (major, minor) in devices.chain(TERMINALS.iter().copied()) {
        program.push(unless(DEVICE_MAJOR, major as i32, 3));
        program.push(unless(DEVICE_MINOR, minor as i32, 2));
        program.extend(answer(1));
    }
    program.push(unless(DEVICE_MAJOR, PTS as i32, 2));
    program.extend(answer(1));
    program.extend(answer(0));
    program
}

/// Bounds what is below `cgroup` to the devices of VPSs. A program of an
/// earlier agent is replaced.
///
/// # Errors
/// The kernel's: `ENOSYS` and `EINVAL` when it was built without
/// `CONFIG_CGROUP_BPF`, `EPERM` for want of privileges.
pub(crate) fn bound(cgroup: BorrowedFd<'_>) -> Result<(), Errno> {
    let program = bpf::load(&program())?;
    bpf::attach(cgroup, &program)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program says, by executing it.
    fn allows(kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u64; 11];
        let program = program();
        let mut at = 0;
        loop {
            let Instruction {
                code,
                registers: both,
                offset,
                value,
            } = program[at];
            let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
            at += 1;
            match code {
                LOAD_WORD => registers[to] = u64::from(context[offset as usize / 4]),
                COPY => registers[to] = registers[from],
                SET => registers[to] = value as u64,
                SHIFT_RIGHT => registers[to] >>= value,
                AND => registers[to] &= value as u64,
                SKIP_IF_EQUAL if registers[to] == value as u64 => at += offset as usize,
                SKIP_UNLESS_EQUAL if registers[to] != value as u64 => at += offset as usize,
                SKIP_IF_EQUAL | SKIP_UNLESS_EQUAL => {}
                EXIT => return registers[0] == 1,
                _ => panic!("{code:#x}"),
            }
        }
    }

    #[test]
    fn nodes_may_be_made_and_those_of_a_vps_be_opened() {
        const MKNOD: u32 = 1;
        const READ: u32 = 2;
        const BOTH: u32 = 6;
        const BLOCK: u32 = 1;
        const CHARACTER: u32 = 2;
        for (major, minor) in [
            (1, 3),
            (1, 9),
            (5, 0),
            (5, 2),
            (10, 229),
            (136, 0),
            (136, 999),
        ] {
            assert!(allows(CHARACTER, BOTH, major, minor), "{major}:{minor}");
            assert!(allows(CHARACTER, READ, major, minor), "{major}:{minor}");
            assert!(!allows(BLOCK, READ, major, minor), "{major}:{minor}");
        }
        // Memory, the kernel's log, a disk, KVM, a serial port, a loop device.
        for (major, minor) in [(1, 1), (1, 11), (8, 0), (10, 232), (4, 64), (7, 0), (0, 0)] {
            for kind in [BLOCK, CHARACTER] {
                assert!(!allows(kind, READ, major, minor), "{major}:{minor}");
                assert!(allows(kind, MKNOD, major, minor), "{major}:{minor}");
                assert!(!allows(kind, MKNOD | READ, major, minor), "{major}:{minor}");
            }
        }
    }
}

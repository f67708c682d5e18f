//! The system call filter of every VPS: a short list of what an own user
//! namespace does not already refuse, or refuses too late.
//!
//! One classic BPF program, assembled here: the kernel caches its verdict for
//! system calls that it allows whatever their arguments, so that these cost
//! nothing. (`seccompiler` makes one program per errno, and installs it with
//! `no_new_privs`, which breaks `sudo` in a VPS.)

use libc::sock_filter;

/// Refused with `EPERM`: for the machine's administrator only.
const FORBIDDEN: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_bpf,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
];

/// Refused with `ENOSYS`, as by a kernel without them, so that programs take
/// their other way: large, or shared between VPSs.
const ABSENT: &[libc::c_long] = &[
    libc::SYS_add_key,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
];

/// `AUDIT_ARCH_X86_64`.
const ARCH: u32 = 0xc000_003e;
/// First system call number of the x32 ABI.
const X32: u32 = 0x4000_0000;
/// Offsets in `struct seccomp_data`; the low halves of the arguments.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENT_0: u32 = 16;
const ARGUMENT_2: u32 = 32;

const NETLINK_AUDIT: u32 = 9;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// The verdicts, at the program's end.
#[derive(Clone, Copy, PartialEq)]
enum To {
    Next,
    Allow,
    Family,
    Forbidden,
    Absent,
}

/// The filter's program.
///
/// Other ABIs (i386, x32) are refused whole: their `socketcall` hides its
/// arguments from a filter.
pub(crate) fn program() -> Vec<sock_filter> {
    // (code, constant, where to when true, where to when false)
    let mut rows: Vec<(u16, u32, To, To)> = vec![
        (LOAD, ARCHITECTURE, To::Next, To::Next),
        (EQUAL, ARCH, To::Next, To::Absent),
        (LOAD, NUMBER, To::Next, To::Next),
        (AT_LEAST, X32, To::Absent, To::Next),
    ];
    rows.extend(
        FORBIDDEN
            .iter()
            .map(|number| (EQUAL, *number as u32, To::Forbidden, To::Next)),
    );
    rows.extend(
        ABSENT
            .iter()
            .map(|number| (EQUAL, *number as u32, To::Absent, To::Next)),
    );
    rows.extend([
        (EQUAL, libc::SYS_socket as u32, To::Next, To::Allow),
        (LOAD, ARGUMENT_0, To::Next, To::Next),
        // Virtio sockets know no namespaces: they lead to the agent and the host.
        (EQUAL, libc::AF_VSOCK as u32, To::Family, To::Next),
        (EQUAL, libc::AF_NETLINK as u32, To::Next, To::Allow),
        // Without an audit socket, systemd does without auditing.
        (LOAD, ARGUMENT_2, To::Next, To::Next),
        (EQUAL, NETLINK_AUDIT, To::Family, To::Allow),
    ]);
    let verdicts = [
        (To::Allow, libc::SECCOMP_RET_ALLOW),
        (
            To::Family,
            libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT as u32,
        ),
        (To::Forbidden, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        (To::Absent, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    ];
    let distance = |from: usize, to: To| match verdicts.iter().position(|(name, _)| *name == to) {
        // Far less than 256: the program has about 40 rows.
        Some(index) => (rows.len() + index - from - 1) as u8,
        None => 0,
    };
    let mut program: Vec<sock_filter> = rows
        .iter()
        .enumerate()
        .map(|(at, (code, k, yes, no))| sock_filter {
            code: *code,
            jt: distance(at, *yes),
            jf: distance(at, *no),
            k: *k,
        })
        .collect();
    program.extend(verdicts.map(|(_, k)| sock_filter {
        code: RETURN,
        jt: 0,
        jf: 0,
        k,
    }));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    fn verdict(arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(number.to_le_bytes());
        data.extend(arch.to_le_bytes());
        data.extend(0u64.to_le_bytes());
        for arg in args {
            data.extend(arg.to_le_bytes());
        }
        let program = program();
        let (mut at, mut a) = (0usize, 0u32);
        loop {
            let row = &program[at];
            at += 1;
            match row.code {
                LOAD => {
                    let k = row.k as usize;
                    a = u32::from_le_bytes(data[k..k + 4].try_into().unwrap());
                }
                EQUAL => at += usize::from(if a == row.k { row.jt } else { row.jf }),
                AT_LEAST => at += usize::from(if a >= row.k { row.jt } else { row.jf }),
                RETURN => return row.k,
                code => panic!("code {code:#x}"),
            }
        }
    }

    fn errno(errno: i32) -> u32 {
        libc::SECCOMP_RET_ERRNO | errno as u32
    }

    #[test]
    fn families_are_told_apart() {
        let socket = |family: i32, protocol: u64| {
            verdict(
                ARCH,
                libc::SYS_socket as u32,
                [family as u64, 1, protocol, 0, 0, 0],
            )
        };
        assert_eq!(socket(libc::AF_VSOCK, 0), errno(libc::EAFNOSUPPORT));
        assert_eq!(socket(libc::AF_NETLINK, 9), errno(libc::EAFNOSUPPORT));
        assert_eq!(socket(libc::AF_NETLINK, 0), libc::SECCOMP_RET_ALLOW);
        assert_eq!(socket(libc::AF_INET, 9), libc::SECCOMP_RET_ALLOW);
        assert_eq!(socket(libc::AF_UNIX, 0), libc::SECCOMP_RET_ALLOW);
    }

    #[test]
    fn every_listed_call_is_refused_and_others_are_not() {
        for number in 0..600u32 {
            let expected = if FORBIDDEN.contains(&i64::from(number)) {
                errno(libc::EPERM)
            } else if ABSENT.contains(&i64::from(number)) {
                errno(libc::ENOSYS)
            } else {
                libc::SECCOMP_RET_ALLOW
            };
            assert_eq!(verdict(ARCH, number, [0; 6]), expected, "{number}");
        }
    }

    #[test]
    fn other_abis_are_refused() {
        const I386: u32 = 0x4000_0003;
        assert_eq!(verdict(I386, 102, [0; 6]), errno(libc::ENOSYS));
        assert_eq!(verdict(ARCH, X32 + 1, [0; 6]), errno(libc::ENOSYS));
        assert_eq!(verdict(ARCH, u32::MAX, [0; 6]), errno(libc::ENOSYS));
    }
}

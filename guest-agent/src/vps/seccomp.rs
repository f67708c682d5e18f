//! The system call filter of every VPS: a short list of what an own user
//! namespace does not already refuse, or refuses too late.
//!
//! One classic BPF program, assembled here: the kernel caches its verdict for
//! system calls that it allows whatever their arguments, so that these cost
//! nothing. To know that verdict it runs the program once for each system call
//! there is when it is installed, which most of that costs; so the program
//! searches the refused calls by halves. (`seccompiler` makes one program per errno, and installs it with
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

/// Where a row leads.
#[derive(Clone, Copy, PartialEq)]
enum To {
    Next,
    /// That row.
    Row(usize),
    /// The rows that look at a new socket's family.
    Socket,
    /// The verdicts, at the program's end.
    Allow,
    Family,
    Forbidden,
    Absent,
}

/// Code, constant, where to when true, where to when false.
type Row = (u16, u32, To, To);

/// Refused system calls that are compared one after the other. Fewer make more
/// rows, each of which the kernel compiles.
const LEAF: usize = 4;

/// Looks the system call up in `calls`, which are in order.
fn search(rows: &mut Vec<Row>, calls: &[(u32, To)]) {
    if calls.len() <= LEAF {
        for (at, (number, to)) in calls.iter().enumerate() {
            let is_last = at + 1 == calls.len();
            let otherwise = if is_last { To::Allow } else { To::Next };
            rows.push((EQUAL, *number, *to, otherwise));
        }
        return;
    }
    let (below, from) = calls.split_at(calls.len() / 2);
    let fork = rows.len();
    rows.push((AT_LEAST, from[0].0, To::Next, To::Next));
    search(rows, below);
    rows[fork].2 = To::Row(rows.len());
    search(rows, from);
}

/// The filter's program.
///
/// Other ABIs (i386, x32) are refused whole: their `socketcall` hides its
/// arguments from a filter.
pub(crate) fn program() -> Vec<sock_filter> {
    let refused = |numbers: &[libc::c_long], to: To| {
        let calls = numbers.iter().map(move |number| (*number as u32, to));
        calls.collect::<Vec<_>>()
    };
    let mut calls = vec![(libc::SYS_socket as u32, To::Socket)];
    calls.extend(refused(FORBIDDEN, To::Forbidden));
    calls.extend(refused(ABSENT, To::Absent));
    calls.sort_unstable_by_key(|(number, _)| *number);

    let mut rows: Vec<Row> = vec![
        (LOAD, ARCHITECTURE, To::Next, To::Next),
        (EQUAL, ARCH, To::Next, To::Absent),
        (LOAD, NUMBER, To::Next, To::Next),
        (AT_LEAST, X32, To::Absent, To::Next),
    ];
    search(&mut rows, &calls);
    let socket = rows.len();
    rows.extend([
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
    let distance = |from: usize, to: To| {
        let target = match to {
            To::Next => from + 1,
            To::Row(row) => row,
            To::Socket => socket,
            _ => {
                let verdict = verdicts.iter().position(|(name, _)| *name == to);
                rows.len() + verdict.unwrap_or(0)
            }
        };
        // Far less than 256: the program has about 50 rows.
        (target - from - 1) as u8
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
    fn the_program_is_short() {
        assert!(program().len() < 64);
    }

    #[test]
    fn other_abis_are_refused() {
        const I386: u32 = 0x4000_0003;
        assert_eq!(verdict(I386, 102, [0; 6]), errno(libc::ENOSYS));
        assert_eq!(verdict(ARCH, X32 + 1, [0; 6]), errno(libc::ENOSYS));
        assert_eq!(verdict(ARCH, u32::MAX, [0; 6]), errno(libc::ENOSYS));
    }
}

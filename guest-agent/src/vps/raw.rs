//! System calls that rustix has not, each behind a safe function. Nothing
//! else in the engine is `unsafe`, but `bpf`.

use std::convert::Infallible;
use std::ffi::CString;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;
use rustix::thread::UnshareFlags;

type Result<T> = std::result::Result<T, Errno>;

/// The kernel's verdict behind a libc return value.
pub(super) fn check(result: libc::c_long) -> Result<libc::c_long> {
    if result < 0 {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    } else {
        Ok(result)
    }
}

/// What `clone3` returned to whom.
pub(crate) enum Cloned {
    /// In the new process.
    Child,
    /// In the caller.
    Parent {
        /// The child, as the caller sees it.
        pid: i32,
        /// Its pidfd.
        pidfd: OwnedFd,
    },
}

/// A new process with `namespaces` (`CLONE_NEW*`) of its own, in `cgroup` when
/// one is given; as a sibling instead of a child when `sibling`.
///
/// To be called in a single-threaded process only: the child goes on with a
/// copy of all memory, locks included.
pub(crate) fn clone3(
    namespaces: i32,
    cgroup: Option<BorrowedFd<'_>>,
    sibling: bool,
) -> Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all zeroes is a valid clone_args.
    let mut args: libc::clone_args = unsafe { mem::zeroed() };
    args.flags = namespaces as u64 | libc::CLONE_PIDFD as u64;
    args.pidfd = ptr::from_mut(&mut pidfd) as u64;
    if sibling {
        // The exit signal is then the caller's own.
        args.flags |= libc::CLONE_PARENT as u64;
    } else {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = cgroup {
        // Not in libc as an unsigned constant.
        const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: no stack and no CLONE_VM, so that this is a fork: the child
    // returns here on a copy of the stack. The kernel writes to `pidfd` only.
    let pid = check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            ptr::from_ref(&args),
            size_of::<libc::clone_args>(),
        )
    })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent {
        pid: pid as i32,
        pidfd,
    })
}

/// Ends the process at once: no destructors, no `atexit`.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Replaces the program; returns only the error.
///
/// `argv` and `env` are terminated here.
pub(crate) fn execve(program: &CString, argv: &[CString], env: &[CString]) -> Errno {
    let pointers = |strings: &[CString]| {
        let mut pointers: Vec<*const libc::c_char> =
            strings.iter().map(|string| string.as_ptr()).collect();
        pointers.push(ptr::null());
        pointers
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: NUL-terminated strings in NULL-terminated arrays that outlive
    // the call.
    let result = unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    check(libc::c_long::from(result)).err().unwrap_or(Errno::IO)
}

/// Leaves some namespaces for new ones. No thread can be surprised: the engine
/// runs in single-threaded processes.
pub(crate) fn unshare(flags: UnshareFlags) -> Result<()> {
    // SAFETY: the files table is never unshared here (see rustix's comment).
    unsafe { rustix::thread::unshare_unsafe(flags.difference(UnshareFlags::FILES)) }
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Maps the owners in the detached mount `tree` through a user namespace.
pub(crate) fn idmap_mount(tree: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> Result<()> {
    let attr = MountAttr {
        attr_set: 0x0010_0000, // MOUNT_ATTR_IDMAP
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.as_raw_fd() as u64,
    };
    set_mount_attributes(tree, &attr)
}

/// Makes the detached mount `tree` read-only, and a place of no programs and
/// no devices.
pub(crate) fn guard_mount(tree: BorrowedFd<'_>) -> Result<()> {
    let attr = MountAttr {
        // MOUNT_ATTR_RDONLY, _NOSUID, _NODEV, _NOEXEC.
        attr_set: 0x0000_000f,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    set_mount_attributes(tree, &attr)
}

fn set_mount_attributes(tree: BorrowedFd<'_>, attr: &MountAttr) -> Result<()> {
    // SAFETY: an empty path and a structure of the size that is given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// Marks all descriptors from 3 on to be closed by `execve`.
pub(crate) fn close_others_on_exec() -> Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: closes nothing before execve, when nobody uses them any more.
    check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            CLOSE_RANGE_CLOEXEC,
        )
    })
    .map(drop)
}

/// Installs a seccomp filter without `no_new_privs`; needs `CAP_SYS_ADMIN` in
/// the user namespace.
pub(crate) fn install_filter(program: &[libc::sock_filter]) -> Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        filter: program.as_ptr().cast_mut(),
    };
    const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
    // SAFETY: the kernel copies the program and checks it.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SECCOMP_SET_MODE_FILTER,
            0,
            ptr::from_ref(&program),
        )
    })
    .map(drop)
}

/// Gives all signals their default action, ignored ones included, which
/// `execve` would leave ignored.
pub(crate) fn default_signals() {
    for signal in 1..=64 {
        // The kernel's struct sigaction: handler, flags, restorer, mask.
        let action = [0u64; 4];
        // SAFETY: SIG_DFL with no flags. The raw call, because libc refuses
        // its own real-time signals. SIGKILL and SIGSTOP fail, harmlessly.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                action.as_ptr(),
                ptr::null::<u64>(),
                8,
            );
        }
    }
}

/// Sets the mask of blocked signals: bit `n - 1` is signal `n`.
pub(crate) fn set_signal_mask(mask: u64) {
    // SAFETY: a mask of eight bytes, as the kernel's.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            ptr::from_ref(&mask),
            ptr::null::<u64>(),
            8,
        );
    }
}

/// Leaves the session keyring that the parent handed down.
pub(crate) fn new_session_keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: an anonymous keyring: no pointer is passed. A kernel without
    // keys has none to hand down.
    unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            ptr::null::<u8>(),
        );
    }
}

/// Brings up `lo` of the caller's network namespace.
pub(crate) fn loopback_up(socket: impl AsFd) -> Result<()> {
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the kernel reads an ifreq.
    let result = unsafe {
        libc::ioctl(
            socket.as_fd().as_raw_fd(),
            libc::SIOCSIFFLAGS,
            ptr::from_ref(&request),
        )
    };
    check(libc::c_long::from(result)).map(drop)
}

/// The number of a terminal, from its master side.
pub(crate) fn terminal_number(master: impl AsFd) -> Result<u32> {
    let mut number: libc::c_uint = 0;
    // SAFETY: the kernel writes one unsigned int.
    let result = unsafe {
        libc::ioctl(
            master.as_fd().as_raw_fd(),
            libc::TIOCGPTN,
            ptr::from_mut(&mut number),
        )
    };
    check(libc::c_long::from(result)).map(|_| number)
}

/// Asks `/dev/loop-control` for a device that nobody uses.
pub(crate) fn free_loop_device(control: impl AsFd) -> Result<u32> {
    const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
    // SAFETY: takes no argument.
    let number = unsafe { libc::ioctl(control.as_fd().as_raw_fd(), LOOP_CTL_GET_FREE) };
    check(libc::c_long::from(number)).map(|number| number as u32)
}

/// Attaches a loop device to `file`: read-only, and detached with its last
/// user.
pub(crate) fn configure_loop_device(device: impl AsFd, file: RawFd) -> Result<()> {
    const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
    const LO_FLAGS_READ_ONLY: u32 = 1;
    const LO_FLAGS_AUTOCLEAR: u32 = 4;
    /// Offset of `lo_flags` in `struct loop_info64`.
    const FLAGS: usize = 52;
    /// `struct loop_config`: fd, block size, loop_info64, reserved.
    #[repr(C)]
    struct Config {
        fd: u32,
        block_size: u32,
        info: [u8; 232],
        reserved: [u64; 8],
    }
    let mut config = Config {
        fd: file as u32,
        block_size: 0,
        info: [0; 232],
        reserved: [0; 8],
    };
    let flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR;
    config.info[FLAGS..FLAGS + 4].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the kernel reads one loop_config.
    let result = unsafe {
        libc::ioctl(
            device.as_fd().as_raw_fd(),
            LOOP_CONFIGURE,
            ptr::from_ref(&config),
        )
    };
    check(libc::c_long::from(result)).map(drop)
}

/// A descriptor by its number, in a new process that inherited it.
pub(crate) fn borrow(file: RawFd) -> BorrowedFd<'static> {
    // SAFETY: the number comes from a BorrowedFd of the engine's process that
    // was alive when this process was forked off, and nothing closes it here.
    unsafe { BorrowedFd::borrow_raw(file) }
}

/// Runs the child's side of a [`clone3`], which does not return: not even by a
/// panic.
pub(crate) fn end(child: impl FnOnce() -> Infallible) -> ! {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)) {
        Ok(never) => match never {},
        Err(_) => exit_now(125),
    }
}

/// Closes all descriptors of a new process.
pub(crate) fn close_all() {
    // SAFETY: the process goes on by paths only, and ends with `exit_now`.
    unsafe {
        libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0);
    }
}

/// The mask of blocked signals.
pub(crate) fn signal_mask() -> u64 {
    let mut mask = 0u64;
    // SAFETY: the kernel writes a mask of eight bytes.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            ptr::null::<u64>(),
            ptr::from_mut(&mut mask),
            8,
        );
    }
    mask
}

/// Waits for one of the blocked signals in `mask`.
pub(crate) fn wait_signal(mask: u64) -> i32 {
    // SAFETY: the kernel reads a mask of eight bytes; no siginfo, no timeout.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigtimedwait,
            ptr::from_ref(&mask),
            ptr::null::<u8>(),
            ptr::null::<u8>(),
            8,
        ) as i32
    }
}

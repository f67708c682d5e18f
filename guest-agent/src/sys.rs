//! The system calls that have no safe wrapper elsewhere.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// vsock's "any CID".
pub(crate) const VSOCK_ANY: u32 = u32::MAX;
/// The host's CID.
pub(crate) const VSOCK_HOST: u32 = 2;

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn checked(result: i32) -> Result<i32, Errno> {
    if result < 0 {
        Err(last_errno())
    } else {
        Ok(result)
    }
}

/// Owns a descriptor that a system call just returned.
fn owned(result: i32) -> Result<OwnedFd, Errno> {
    let fd = checked(result)?;
    // SAFETY: the kernel just made `fd` for us; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Blocks every signal: they are read from [`signal_fd`]. `SIGPIPE`, which
/// Rust ignores, becomes default again, because a blocked signal does no harm
/// and an ignored one would be inherited by every program that is executed.
///
/// # Errors
/// The kernel's.
pub(crate) fn block_signals() -> Result<(), Errno> {
    // SAFETY: `set` is initialised by `sigfillset` before use.
    checked(unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut())
    })?;
    // SAFETY: the default disposition is always valid.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    Ok(())
}

/// A non-blocking descriptor from which `signals` are read.
///
/// # Errors
/// The kernel's.
pub(crate) fn signal_fd(signals: &[i32]) -> Result<OwnedFd, Errno> {
    // SAFETY: `set` is initialised by `sigemptyset` before use.
    owned(unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    })
}

/// The next signal from a [`signal_fd`], if one has come.
pub(crate) fn read_signal(fd: impl AsFd) -> Option<i32> {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(fd, &mut info) {
        Ok(count) if count == info.len() => {
            // The first field is `ssi_signo`, a u32.
            Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
        }
        _ => None,
    }
}

/// The PID of a child that has ended and was not reaped, without reaping it.
pub(crate) fn peek_child() -> Option<i32> {
    // SAFETY: `info` is a plain structure that the kernel fills; for a child
    // (and zeroed memory) `si_pid` is the valid member.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        if libc::waitid(libc::P_ALL, 0, &raw mut info, options) != 0 {
            return None;
        }
        Some(info.si_pid()).filter(|pid| *pid > 0)
    }
}

/// `fork`: the child's PID in the parent, `None` in the child.
///
/// Only for single-threaded processes: there the child may go on as it likes.
///
/// # Errors
/// The kernel's.
pub(crate) fn fork() -> Result<Option<i32>, Errno> {
    // SAFETY: the agent has one thread, so the child has all of its state and
    // no lock is held by anybody else.
    let pid = checked(unsafe { libc::fork() })?;
    Ok(Some(pid).filter(|pid| *pid != 0))
}

/// Ends the process at once: no destructors, no buffers of a forked copy.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor from `first` on: for a forked worker that keeps
/// none of the agent's files open.
pub(crate) fn close_from(first: u32) {
    // SAFETY: called in a worker that ends by `exit_now` and so drops none of
    // the owners of these descriptors.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Sends `signal` to `pid`, or to the group `-pid`.
///
/// # Errors
/// The kernel's.
pub(crate) fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: `kill` reads no memory of ours.
    checked(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Mixes `bytes`, each bit of which is worth a bit, into the kernel's pool of
/// entropy; `random` is `/dev/random`.
///
/// # Errors
/// The kernel's.
pub(crate) fn add_entropy(random: impl AsFd, bytes: &[u8; 64]) -> Result<(), Errno> {
    /// `struct rand_pool_info`.
    #[repr(C)]
    struct PoolInfo {
        entropy_count: libc::c_int,
        buf_size: libc::c_int,
        buf: [u8; 64],
    }
    const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
    let info = PoolInfo {
        entropy_count: 8 * bytes.len() as libc::c_int,
        buf_size: bytes.len() as libc::c_int,
        buf: *bytes,
    };
    // SAFETY: `info` is a `rand_pool_info` whose `buf_size` bytes follow it;
    // the kernel only reads it, during the call.
    checked(unsafe { libc::ioctl(random.as_fd().as_raw_fd(), RNDADDENTROPY, &raw const info) })
        .map(drop)
}

/// Makes the kernel draw new keys from its pool for all random numbers that
/// follow, those of other processors and of processes included.
///
/// # Errors
/// The kernel's.
pub(crate) fn reseed(random: impl AsFd) -> Result<(), Errno> {
    const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
    // SAFETY: no pointers.
    checked(unsafe { libc::ioctl(random.as_fd().as_raw_fd(), RNDRESEEDCRNG) }).map(drop)
}

/// A vsock stream socket, non-blocking.
fn vsock_socket() -> Result<OwnedFd, Errno> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers.
    owned(unsafe { libc::socket(libc::AF_VSOCK, kind, 0) })
}

fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all-zero is a valid `sockaddr_vm`.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as u16;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

/// Begins to connect to `port` of `cid`; done when the socket is writable.
///
/// # Errors
/// The kernel's.
pub(crate) fn vsock_dial(cid: u32, port: u32) -> Result<OwnedFd, Errno> {
    let fd = vsock_socket()?;
    let address = vsock_address(cid, port);
    let length = size_of::<libc::sockaddr_vm>() as u32;
    // SAFETY: `address` outlives the call and `length` is its size.
    let result =
        checked(unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), length) });
    match result {
        Ok(_) | Err(Errno::INPROGRESS) => Ok(fd),
        Err(e) => Err(e),
    }
}

/// Listens on vsock `port`.
///
/// # Errors
/// The kernel's.
pub(crate) fn vsock_listen(port: u32) -> Result<OwnedFd, Errno> {
    let fd = vsock_socket()?;
    let address = vsock_address(VSOCK_ANY, port);
    let length = size_of::<libc::sockaddr_vm>() as u32;
    // SAFETY: `address` outlives the call and `length` is its size.
    checked(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) })?;
    rustix::net::listen(&fd, 64)?;
    Ok(fd)
}

/// Accepts a connection on a vsock listener: it, and the caller's CID.
///
/// # Errors
/// The kernel's; `AGAIN` when nobody is there.
pub(crate) fn vsock_accept(listener: BorrowedFd<'_>) -> Result<(OwnedFd, u32), Errno> {
    let mut address = vsock_address(0, 0);
    let mut length = size_of::<libc::sockaddr_vm>() as u32;
    // SAFETY: both out-parameters outlive the call; `length` is the size of `address`.
    let fd = owned(unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            (&raw mut address).cast(),
            &raw mut length,
            libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
        )
    })?;
    Ok((fd, address.svm_cid))
}

/// Brings the loopback interface of this network namespace up.
///
/// # Errors
/// The kernel's.
pub(crate) fn loopback_up() -> Result<(), Errno> {
    // SAFETY: no pointers.
    let socket =
        owned(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: `request` is a valid `ifreq` with a terminated name, and
    // outlives the call; SIOCSIFFLAGS reads `ifru_flags` only.
    checked(unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    })
    .map(drop)
}

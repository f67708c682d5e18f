//! The machine process as a child of this one.
//!
//! Made by `clone(CLONE_VM | CLONE_VFORK)`, as `posix_spawn` does it, but
//! without what that does for programs that it knows nothing of: it asks for
//! the handlers of all signals one by one and maps a stack, which together
//! take as long as the kernel's part of it. Here all signals stay blocked into
//! the new program, which allows them again first of all.

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::ptr;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// Bytes of stack for the child until it is the new program: a few system
/// calls.
const STACK: usize = 16 << 10;

/// A process that was made here. Dropping it changes nothing.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    /// How it ended; it is gone then, and its number may be another's.
    status: Option<ExitStatus>,
}

impl Child {
    /// Runs `program`, a path, with these arguments (the first names it) and
    /// this environment. `streams`, none of which may be a standard stream
    /// itself, become its standard ones. All signals are blocked in it, and
    /// those that this process ignores are ignored.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn spawn(
        program: &CStr,
        arguments: &[CString],
        environment: &[CString],
        streams: &[OwnedFd; 3],
    ) -> io::Result<Self> {
        let arguments = pointers(arguments);
        let environment = pointers(environment);
        let mut exec = Exec {
            program: program.as_ptr(),
            arguments: arguments.as_ptr(),
            environment: environment.as_ptr(),
            streams: streams.each_ref().map(AsRawFd::as_raw_fd),
            errno: 0,
        };
        if exec.streams.iter().any(|fd| *fd < 3) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let cloned = clone_and_exec(&mut exec)?;
        let mut child = Self {
            pid: cloned,
            status: None,
        };
        if exec.errno != 0 {
            child.wait()?;
            return Err(io::Error::from_raw_os_error(exec.errno));
        }
        Ok(child)
    }

    /// Its number.
    pub(super) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Kills it, unless it has been waited for.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn kill(&mut self) -> io::Result<()> {
        match self.status {
            Some(_) => Ok(()),
            None => Ok(kill_process(self.pid, Signal::KILL)?),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.look(WaitOptions::empty())? {
                return Ok(status);
            }
        }
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.look(WaitOptions::NOHANG)
    }

    fn look(&mut self, how: WaitOptions) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            let ended = rustix::io::retry_on_intr(|| waitpid(Some(self.pid), how))?;
            self.status = ended.map(|(_, status)| ExitStatus::from_raw(status.as_raw()));
        }
        Ok(self.status)
    }
}

/// As `execve` wants them; they point into `strings`.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    let strings = strings.iter().map(|string| string.as_ptr());
    strings.chain([ptr::null()]).collect()
}

/// What the child needs, in memory that it shares with us.
struct Exec {
    program: *const c_char,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    streams: [RawFd; 3],
    /// Why it did not become the program.
    errno: c_int,
}

/// Makes a process that does what `exec` says; returns when it has, or when it
/// has failed and said why.
fn clone_and_exec(exec: &mut Exec) -> io::Result<Pid> {
    let mut stack = [MaybeUninit::<u8>::uninit(); STACK];
    let top = stack.as_mut_ptr_range().end;
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are there to be written to. With all signals blocked no
    // handler of ours runs in the child, on memory that is ours.
    let blocked = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr())
    };
    if blocked != 0 {
        return Err(io::Error::from_raw_os_error(blocked));
    }
    // SAFETY: the child runs `become_program` on a stack of its own, which is
    // large enough for that, in memory that is also ours. This thread stands
    // still until the child has another memory or has ended (CLONE_VFORK), so
    // that stack and `exec` live as long as it uses them, and nobody else does.
    // `exec` holds pointers to what its maker keeps alive during this call.
    let (pid, error) = unsafe {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let exec: *mut Exec = exec;
        let pid = libc::clone(become_program, top.cast(), flags, exec.cast());
        (pid, io::Error::last_os_error())
    };
    // SAFETY: it was filled above, where that succeeded.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    Pid::from_raw(pid).filter(|_| pid > 0).ok_or(error)
}

/// What the child does: system calls and nothing else, since whatever another
/// thread of ours is in the middle of, such as allocating, stays so.
extern "C" fn become_program(exec: *mut c_void) -> c_int {
    // SAFETY: it is the `Exec` of `clone_and_exec`, which nobody else uses now.
    let exec = unsafe { &mut *exec.cast::<Exec>() };
    let Err(errno) = try_become(exec);
    exec.errno = errno;
    127
}

fn try_become(exec: &Exec) -> Result<Infallible, c_int> {
    // SAFETY: it points to this thread's, which is that of a thread of ours
    // that stands still.
    let errno = || unsafe { *libc::__errno_location() };
    for (standard, stream) in (0..).zip(exec.streams) {
        // SAFETY: dup2 takes any numbers. The child's descriptors are its own.
        if unsafe { libc::dup2(stream, standard) } < 0 {
            return Err(errno());
        }
    }
    // SAFETY: a path and two lists that end with a null pointer, of strings
    // that end with a zero byte, which outlive this call.
    unsafe { libc::execve(exec.program, exec.arguments, exec.environment) };
    Err(errno())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, pipe};

    use super::*;

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn shell(script: &str, environment: &[CString], output: OwnedFd) -> Child {
        let arguments = ["sh", "-c", script].map(|text| CString::new(text).unwrap());
        Child::spawn(
            c"/bin/sh",
            &arguments,
            environment,
            &[null(), output, null()],
        )
        .unwrap()
    }

    #[test]
    fn a_program_gets_arguments_environment_and_streams() {
        let (mut read, write) = pipe().unwrap();
        let mut child = shell("echo $A $0; exit 3", &[c"A=b".to_owned()], write.into());
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "b sh\n");
        assert_eq!(child.wait().unwrap().code(), Some(3));
        // It is known from now on.
        assert_eq!(child.try_wait().unwrap().unwrap().code(), Some(3));
        child.kill().unwrap();
    }

    #[test]
    fn it_can_be_killed_whatever_it_blocks() {
        let mut child = shell(
            "exec sleep 1000",
            &[c"PATH=/usr/bin:/bin".to_owned()],
            null(),
        );
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let error = Child::spawn(c"/nonexistent", &[], &[], &[null(), null(), null()]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn our_own_signals_are_as_they_were() {
        let blocked = || {
            let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
            // SAFETY: a set to be written to; nothing is changed.
            unsafe {
                libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), set.as_mut_ptr());
                libc::sigismember(set.as_ptr(), libc::SIGTERM)
            }
        };
        shell("exit 0", &[], null()).wait().unwrap();
        assert_eq!(blocked(), 0);
    }
}

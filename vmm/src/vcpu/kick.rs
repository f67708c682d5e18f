//! Getting a virtual processor out of guest mode from another thread.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::Vcpu;

/// Lets a processor that was kicked enter guest mode again. Whoever calls this
/// looks afterwards for what it was kicked for.
pub(super) fn acknowledge(vcpu: &mut Vcpu) {
    let flag = &raw mut vcpu.fd.get_kvm_run().immediate_exit;
    // SAFETY: it is a byte of the processor's own live mapping, and is only
    // written atomically.
    let flag = unsafe { AtomicU8::from_ptr(flag) };
    // Acquires what the kicker did before it kicked.
    flag.swap(0, Ordering::AcqRel);
}

/// Makes a running processor return from guest mode.
///
/// It must not outlive the [`Vcpu`] that it was made for: whoever spawns the
/// processor's thread gets the `Vcpu` back from it and keeps it until then.
#[derive(Debug)]
pub struct Kick {
    immediate_exit: NonNull<u8>,
}

// SAFETY: the pointer leads to a byte of a shared mapping that is only written
// atomically, from whatever thread.
unsafe impl Send for Kick {}

impl Kick {
    /// For one processor, before its thread is spawned.
    pub fn new(vcpu: &mut Vcpu) -> Self {
        Self {
            immediate_exit: NonNull::from(&mut vcpu.fd.get_kvm_run().immediate_exit),
        }
    }

    /// Installs the handler of the signal that interrupts `KVM_RUN`. It does
    /// nothing: that the system call is interrupted is enough.
    ///
    /// # Errors
    /// What the system says.
    pub fn install_handler() -> io::Result<()> {
        extern "C" fn interrupted(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        register_signal_handler(SIGRTMIN(), interrupted).map_err(io::Error::from)
    }

    /// Makes the processor leave guest mode now, or at once when it enters it
    /// next: it does not matter when its thread looks for what to do.
    pub fn kick<T>(&self, thread: &JoinHandle<T>) {
        // SAFETY: the mapping lives as long as the `Vcpu`, which the type's
        // contract keeps alive; a byte has no alignment. The kernel reads it,
        // and nobody writes it otherwise while the machine runs.
        let flag = unsafe { AtomicU8::from_ptr(self.immediate_exit.as_ptr()) };
        flag.store(1, Ordering::Release);
        // SAFETY: the thread is not joined yet, so that its handle is valid,
        // and the signal has a handler. That a thread has ended is no harm.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
    }
}

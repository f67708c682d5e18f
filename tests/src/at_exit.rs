//! Something to do when this process ends: the test runner has no place for
//! what belongs to all tests together.

/// Runs `last` when the process ends by itself, after all tests.
pub(crate) fn at_exit(last: extern "C" fn()) {
    // SAFETY: `last` is a plain function of this program, which is not
    // unloaded before it ends; it may be called on any thread.
    let refused = unsafe { libc::atexit(last) };
    assert_eq!(
        refused, 0,
        "the C library keeps no more functions for the end"
    );
}

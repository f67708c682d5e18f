//! What a process needs before its program begins.

/// To be called first in `main`, by programs that the C library enters. As with the
/// standard library's own start, writing to a pipe that nobody reads is an error and not
/// the end, and no file that is opened gets the number of a standard stream that the
/// starter has closed.
pub fn prepare() {
    let mut streams = [0, 1, 2].map(|fd| libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    });
    // SAFETY: a disposition is set, and no other thread runs that could hold one.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    // SAFETY: the array is of that length, and `poll` does not wait.
    if unsafe { libc::poll(streams.as_mut_ptr(), streams.len() as libc::nfds_t, 0) } <= 0 {
        return;
    }
    for stream in streams {
        if stream.revents & libc::POLLNVAL != 0 {
            // The lowest number that is free, which is this one. Without /dev/null
            // there is nothing better to be had.
            // SAFETY: the path is a C string that lasts.
            unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
        }
    }
}

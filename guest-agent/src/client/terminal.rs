//! The caller's terminal.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::protocol::Terminal;

/// A terminal in raw mode until dropped.
pub(super) struct RawMode<'a> {
    fd: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> RawMode<'a> {
    pub(super) fn enter(fd: BorrowedFd<'a>) -> Result<Self, Errno> {
        let before = tcgetattr(fd)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(fd, OptionalActions::Now, &raw)?;
        Ok(Self { fd, before })
    }
}

impl Drop for RawMode<'_> {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone. `Drain` would
        // wait for a terminal whose flow is stopped.
        let _ = tcsetattr(self.fd, OptionalActions::Now, &self.before);
    }
}

/// The size of the terminal `fd`; `None` when it is not a terminal.
pub fn terminal_size(fd: BorrowedFd<'_>) -> Option<Terminal> {
    let size = tcgetwinsize(fd).ok()?;
    Some(Terminal {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

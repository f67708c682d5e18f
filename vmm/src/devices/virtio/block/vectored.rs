//! Positioned, vectored I/O between a file and guest memory, without a copy
//! in between.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::bitmap::Bitmap;

use crate::devices::virtio::chain::{SegmentError, Segments};
use crate::memory::GuestMemory;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the file to guest memory.
    Read,
    /// From guest memory to the file.
    Write,
}

/// Room for the list that the kernel takes; kept, so that a request does not
/// allocate.
#[derive(Debug, Default)]
pub(super) struct Vectored {
    parts: Vec<libc::iovec>,
}

// SAFETY: the pointers are only followed in `transfer`, which first replaces
// them by ones into the memory that it was given.
unsafe impl Send for Vectored {}

impl Vectored {
    /// Moves the `len` bytes from `offset` in `segments` from or to the
    /// position `position` in `file`, all of them.
    ///
    /// # Errors
    /// A segment lies outside of guest memory (`InvalidInput`), the file ends
    /// before (`UnexpectedEof`), or the system's own error.
    pub(super) fn transfer(
        &mut self,
        direction: Direction,
        file: &File,
        position: u64,
        memory: &GuestMemory,
        segments: &Segments,
        (offset, len): (u64, u64),
    ) -> io::Result<()> {
        self.parts.clear();
        segments
            .visit(memory, offset, len, |slice| {
                if direction == Direction::Read {
                    // The kernel writes there without the slice's knowledge.
                    slice.bitmap().mark_dirty(0, slice.len());
                }
                let base = slice.ptr_guard_mut().as_ptr().cast();
                self.parts.push(libc::iovec {
                    iov_base: base,
                    iov_len: slice.len(),
                });
                true
            })
            .map_err(|error: SegmentError| io::Error::new(io::ErrorKind::InvalidInput, error))?;

        let mut parts = self.parts.as_mut_slice();
        let mut position = i64::try_from(position)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        while !parts.is_empty() {
            let count = i32::try_from(parts.len())
                .unwrap_or(i32::MAX)
                .min(libc::UIO_MAXIOV);
            let (fd, list) = (file.as_raw_fd(), parts.as_ptr());
            let moved = match direction {
                // SAFETY: `list` points to at least `count` entries, each a
                // range of guest memory that `memory` keeps mapped during the
                // call. Nobody holds a Rust reference to guest memory, so the
                // kernel may write there whatever the guest does meanwhile.
                Direction::Read => unsafe { libc::preadv(fd, list, count, position) },
                // SAFETY: as above, and the kernel only reads.
                Direction::Write => unsafe { libc::pwritev(fd, list, count, position) },
            };
            let moved = match usize::try_from(moved) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(moved) => moved,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() == io::ErrorKind::Interrupted {
                        continue;
                    }
                    return Err(error);
                }
            };
            position += moved as i64;
            parts = advance(parts, moved);
        }
        Ok(())
    }
}

/// What is left of `parts` when `moved` bytes are done.
fn advance(parts: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    let mut done = 0;
    for part in parts.iter_mut() {
        if moved < part.iov_len {
            part.iov_base = part.iov_base.cast::<u8>().wrapping_add(moved).cast();
            part.iov_len -= moved;
            break;
        }
        moved -= part.iov_len;
        done += 1;
    }
    &mut parts[done..]
}

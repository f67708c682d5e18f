//! Archives in cpio's "newc" form, the one that Linux takes as initramfs
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`) and that
//! every unpacker reads.

use std::fmt::Write as _;
use std::io::{self, Read, Write};

/// File type bits of a directory.
const S_IFDIR: u32 = 0o040_000;
/// File type bits of a regular file.
const S_IFREG: u32 = 0o100_000;

/// Writes an archive in which everything belongs to root and times are zero,
/// so that equal content makes equal bytes.
#[derive(Debug)]
pub(crate) struct Archive<W> {
    sink: W,
    written: u64,
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// An archive that is written to `sink`.
    pub(crate) fn new(sink: W) -> Self {
        Self {
            sink,
            written: 0,
            inode: 0,
        }
    }

    /// Adds a directory.
    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.header(path, S_IFDIR | 0o755, 0)
    }

    /// Adds a file with permission bits `mode`.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.stream(path, mode, content.len() as u64, &mut &content[..])
    }

    /// Adds a file whose `size` bytes are read from `content`.
    pub(crate) fn stream(
        &mut self,
        path: &str,
        mode: u32,
        size: u64,
        content: &mut dyn Read,
    ) -> io::Result<()> {
        self.header(path, S_IFREG | mode, size)?;
        let copied = io::copy(&mut content.take(size), &mut self.sink)?;
        self.written += copied;
        if copied != size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{path} became shorter while it was read ({copied} of {size} bytes)"),
            ));
        }
        self.pad(4)
    }

    /// Ends the archive, pads it to a multiple of `block` bytes, and returns
    /// the sink and the number of bytes written.
    pub(crate) fn finish(mut self, block: u64) -> io::Result<(W, u64)> {
        self.header("TRAILER!!!", 0, 0)?;
        self.pad(block)?;
        self.sink.flush()?;
        Ok((self.sink, self.written))
    }

    fn header(&mut self, path: &str, mode: u32, size: u64) -> io::Result<()> {
        let size = u32::try_from(size).map_err(|_| {
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("{path} is larger than 4 GiB"),
            )
        })?;
        self.inode += 1;
        let links = if mode & S_IFDIR == S_IFDIR { 2 } else { 1 };
        // magic, inode, mode, uid, gid, links, mtime, size, device and special
        // device numbers, length of the name with its NUL, checksum.
        let numbers = [
            self.inode,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            0,
            0,
            path.len() as u32 + 1,
            0,
        ];
        let mut header = String::from("070701");
        for number in numbers {
            // Writing to a string does not fail.
            let _ = write!(header, "{number:08X}");
        }
        header.push_str(path);
        header.push('\0');
        self.put(header.as_bytes())?;
        self.pad(4)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sink.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self, block: u64) -> io::Result<()> {
        let missing = self.written.next_multiple_of(block) - self.written;
        io::copy(&mut io::repeat(0).take(missing), &mut self.sink)?;
        self.written += missing;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_aligned_entries_and_a_trailer() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("bin").unwrap();
        archive.file("bin/x", 0o755, b"hello").unwrap();
        archive.file("init", 0o755, b"").unwrap();
        let (bytes, length) = archive.finish(512).unwrap();
        assert_eq!(bytes.len() as u64, length);
        assert_eq!(length % 512, 0);
        let magics: Vec<_> = (0..bytes.len() - 6)
            .filter(|&i| &bytes[i..i + 6] == b"070701")
            .collect();
        assert_eq!(magics.len(), 4);
        assert!(magics.iter().all(|i| i % 4 == 0));
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("hello") && text.contains("TRAILER!!!\0"));
    }

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let mut archive = Archive::new(Vec::new());
        let error = archive
            .stream("f", 0o644, 10, &mut &b"abc"[..])
            .unwrap_err();
        assert!(error.to_string().contains("3 of 10"));
    }

    #[test]
    fn equal_content_makes_equal_bytes() {
        let make = || {
            let mut archive = Archive::new(Vec::new());
            archive.file("a", 0o600, b"1").unwrap();
            archive.finish(4).unwrap().0
        };
        assert_eq!(make(), make());
    }
}

//! The console log: what the guest writes to its console, in a file of bounded
//! size, with the last lines in memory for messages.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Size at which the file is begun anew, so that a guest cannot fill the disk.
const FILE_LIMIT: u64 = 8 << 20;
/// Bytes that are kept in memory.
const TAIL_LIMIT: usize = 4096;
/// Bytes that are gathered before they are written, when no line ends.
const BUFFER_LIMIT: usize = 512;

const RESTARTED: &[u8] = b"[insula: the log was full and begins anew here]\n";

/// Where a console's output goes.
///
/// Nothing that happens to the file stops the guest: on a full disk, output is
/// lost and only the tail in memory goes on.
#[derive(Debug)]
pub struct ConsoleLog {
    file: Option<File>,
    /// Bytes in the file.
    length: u64,
    /// Output that is not in the file yet.
    buffer: Vec<u8>,
    tail: VecDeque<u8>,
}

impl ConsoleLog {
    /// A log in a new or emptied file, readable by its owner only.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut log = Self::discard();
        log.open(path)?;
        Ok(log)
    }

    /// Gives a log without a file one, new or emptied, and puts the last of
    /// what it has taken until now into it.
    fn open(&mut self, path: &Path) -> io::Result<()> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        self.file = Some(file);
        self.buffer.extend(&self.tail);
        if self.buffer.contains(&b'\n') {
            self.flush();
        }
        Ok(())
    }

    /// A log without a file.
    pub fn discard() -> Self {
        Self {
            file: None,
            length: 0,
            buffer: Vec::new(),
            tail: VecDeque::new(),
        }
    }

    /// Takes output.
    pub fn append(&mut self, bytes: &[u8]) {
        self.tail.extend(bytes);
        let excess = self.tail.len().saturating_sub(TAIL_LIMIT);
        self.tail.drain(..excess);
        if self.file.is_some() {
            self.buffer.extend_from_slice(bytes);
            if bytes.contains(&b'\n') || self.buffer.len() >= BUFFER_LIMIT {
                self.flush();
            }
        }
    }

    /// Writes what was gathered. What cannot be written is lost.
    pub fn flush(&mut self) {
        let Some(file) = &mut self.file else { return };
        if self.length + self.buffer.len() as u64 > FILE_LIMIT
            && file.set_len(0).and_then(|()| file.rewind()).is_ok()
            && file.write_all(RESTARTED).is_ok()
        {
            self.length = RESTARTED.len() as u64;
        }
        if file.write_all(&self.buffer).is_ok() {
            self.length += self.buffer.len() as u64;
        }
        self.buffer.clear();
    }

    /// The last lines, at most `lines`, as printable text.
    pub fn tail(&self, lines: usize) -> String {
        let bytes: Vec<u8> = self.tail.iter().copied().collect();
        let text: String = String::from_utf8_lossy(&bytes)
            .chars()
            .filter(|c| *c == '\n' || *c == '\t' || !c.is_control())
            .collect();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for ConsoleLog {
    fn drop(&mut self) {
        self.flush();
    }
}

/// A log that the console writes and error messages read.
#[derive(Debug, Clone)]
pub struct SharedConsoleLog(Arc<Mutex<ConsoleLog>>);

impl SharedConsoleLog {
    /// Shares a log.
    pub fn new(log: ConsoleLog) -> Self {
        Self(Arc::new(Mutex::new(log)))
    }

    /// The last lines, at most `lines`, as printable text.
    pub fn tail(&self, lines: usize) -> String {
        self.lock().tail(lines)
    }

    /// Has a log without a file go on in one, new or emptied, that is readable
    /// by its owner only. The last of what it took before goes there, too.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn open(&self, path: &Path) -> io::Result<()> {
        self.lock().open(path)
    }

    fn lock(&self) -> MutexGuard<'_, ConsoleLog> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for SharedConsoleLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().append(bytes);
        Ok(bytes.len())
    }

    /// Does nothing: the UART asks for this after every byte, the log decides
    /// by lines.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SharedConsoleLog {
    /// Writes what was gathered to the file.
    pub fn write_out(&self) {
        self.lock().flush();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn lines_are_in_the_file_at_once_and_the_rest_on_drop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = ConsoleLog::create(&path).unwrap();
        for byte in b"one\ntwo\nthr" {
            log.append(&[*byte]);
        }
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n");
        drop(log);
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\nthr");
    }

    #[test]
    fn a_late_file_gets_what_came_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = SharedConsoleLog::new(ConsoleLog::discard());
        log.write_all(b"one\ntw").unwrap();
        log.open(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one\ntw");
        log.write_all(b"o\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n");
    }

    #[test]
    fn the_file_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = ConsoleLog::create(&path).unwrap();
        let line = [vec![b'x'; 1 << 16], b"\n".to_vec()].concat();
        for _ in 0..200 {
            log.append(&line);
        }
        let content = fs::read(&path).unwrap();
        assert!(content.len() as u64 <= FILE_LIMIT);
        assert!(content.starts_with(RESTARTED));
    }

    #[test]
    fn a_full_disk_does_not_stop_the_guest() {
        let mut log = ConsoleLog::create(Path::new("/dev/full")).unwrap();
        log.append(b"lost in the file\n");
        assert_eq!(log.tail(1), "lost in the file");
    }

    #[test]
    fn tail_has_the_last_lines_without_control_characters() {
        let mut log = ConsoleLog::discard();
        for i in 0..2000 {
            log.append(format!("line {i}\x1b[0m\r\n").as_bytes());
        }
        assert_eq!(log.tail(2), "line 1998[0m\nline 1999[0m");
    }
}

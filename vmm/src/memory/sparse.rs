//! Files with holes.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// The parts of a file that are not holes, in order. Where the file system
/// cannot say, that is all of it.
#[derive(Debug)]
pub struct DataRuns<'a> {
    file: &'a File,
    next: u64,
    end: u64,
}

impl<'a> DataRuns<'a> {
    /// Of a file, or of a block device. Moves its position.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(file: &'a File) -> io::Result<Self> {
        let end = rustix::fs::seek(file, SeekFrom::End(0))?;
        Ok(Self { file, next: 0, end })
    }

    /// Length of the file.
    pub fn file_len(&self) -> u64 {
        self.end
    }

    fn advance(&mut self) -> io::Result<Option<Range<u64>>> {
        if self.next >= self.end {
            return Ok(None);
        }
        let rest = self.next..self.end;
        let start = match rustix::fs::seek(self.file, SeekFrom::Data(self.next)) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => {
                self.next = self.end;
                return Ok(None);
            }
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                self.next = self.end;
                return Ok(Some(rest));
            }
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(self.file, SeekFrom::Hole(start))?.min(self.end);
        self.next = end;
        Ok((start < end).then_some(start..end))
    }
}

impl Iterator for DataRuns<'_> {
    type Item = io::Result<Range<u64>>;

    fn next(&mut self) -> Option<Self::Item> {
        let run = self.advance();
        if run.is_err() {
            self.next = self.end;
        }
        run.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_are_left_out() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 24).unwrap();
        file.write_all_at(b"x", 1 << 20).unwrap();
        file.write_all_at(b"y", 1 << 23).unwrap();
        let runs: Vec<_> = DataRuns::new(&file).unwrap().map(Result::unwrap).collect();
        assert!(runs.iter().any(|run| run.contains(&(1 << 20))), "{runs:?}");
        assert!(runs.iter().any(|run| run.contains(&(1 << 23))), "{runs:?}");
        let data: u64 = runs.iter().map(|run| run.end - run.start).sum();
        assert!(data < 1 << 24 || runs.len() == 1, "{runs:?}");
        assert_eq!(
            DataRuns::new(&tempfile::tempfile().unwrap())
                .unwrap()
                .count(),
            0
        );
    }
}

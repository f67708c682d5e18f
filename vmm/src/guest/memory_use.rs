//! What a guest costs the host in memory, from `/proc/PID/smaps`.
//!
//! The machine process says where it has the guest's memory; everything else
//! is the process itself: program, stacks, heap. One that does not say, since
//! it is about to start or hangs, is judged by its mappings: those of a
//! snapshot's memory file, and private, anonymous ones of at least
//! [`GUEST_LEAST`] bytes.

use std::fs;
use std::io;
use std::ops::AddAssign;
use std::path::Path;

use serde::Serialize;

use super::error::GuestError;
use super::rundir::GuestDir;
use crate::control::AddressRange;

/// The largest mapping of the process that is none of guest memory is smaller,
/// in bytes.
const GUEST_LEAST: u64 = 8 << 20;

/// Memory of a process, or of a part of it, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MemoryUse {
    /// Its share: what it has alone, and of what it shares the part that falls
    /// to it.
    pub pss: u64,
    /// What it has in memory, shared or not.
    pub rss: u64,
    /// What it has alone.
    pub private: u64,
    /// What others have as well.
    pub shared: u64,
    /// What was swapped out.
    pub swap: u64,
    /// Of what it has in memory, the part in transparent huge pages.
    pub huge: u64,
}

impl AddAssign for MemoryUse {
    fn add_assign(&mut self, other: Self) {
        self.pss += other.pss;
        self.rss += other.rss;
        self.private += other.private;
        self.shared += other.shared;
        self.swap += other.swap;
        self.huge += other.huge;
    }
}

/// What a guest costs the host in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct GuestMemoryUse {
    /// All of it.
    pub total: MemoryUse,
    /// The guest's own memory.
    pub guest: MemoryUse,
    /// The machine process.
    pub vmm: MemoryUse,
}

impl GuestDir {
    /// What the guest costs the host in memory now; none when its process is
    /// not there.
    ///
    /// # Errors
    /// [`GuestError::Io`] when that cannot be read.
    pub fn memory_use(&self) -> Result<Option<GuestMemoryUse>, GuestError> {
        let Some(pid) = self.pid() else {
            return Ok(None);
        };
        let path = format!("/proc/{pid}/smaps");
        let guest = self.memory_mappings().ok();
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(parse(&text, guest.as_deref()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(GuestError::io(
                "read the memory of the machine process,",
                Path::new(&path),
                source,
            )),
        }
    }
}

/// Sums up what `smaps` says (`Documentation/filesystems/proc.rst`): for each
/// mapping a line with its range, then lines of names and kibibytes. `guest` is
/// where the guest's memory is, if that is known.
fn parse(smaps: &str, guest: Option<&[AddressRange]>) -> GuestMemoryUse {
    let mut sums = GuestMemoryUse::default();
    let mut is_guest = false;
    for line in smaps.lines() {
        if let Some(mapping) = Mapping::parse(line) {
            is_guest = match guest {
                Some(ranges) => ranges.iter().any(|range| mapping.touches(range)),
                None => mapping.looks_like_guest(),
            };
            continue;
        }
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(Ok(kib))) = (words.next(), words.next().map(str::parse::<u64>))
        else {
            continue;
        };
        let bytes = kib * 1024;
        let mut part = MemoryUse::default();
        match name {
            "Pss:" => part.pss = bytes,
            "Rss:" => part.rss = bytes,
            "Private_Clean:" | "Private_Dirty:" => part.private = bytes,
            "Shared_Clean:" | "Shared_Dirty:" => part.shared = bytes,
            "Swap:" => part.swap = bytes,
            "AnonHugePages:" => part.huge = bytes,
            _ => continue,
        }
        sums.total += part;
        if is_guest {
            sums.guest += part;
        } else {
            sums.vmm += part;
        }
    }
    sums
}

struct Mapping<'a> {
    start: u64,
    end: u64,
    is_private: bool,
    name: &'a str,
}

impl<'a> Mapping<'a> {
    /// `start-end permissions offset device inode [name]`
    fn parse(line: &'a str) -> Option<Self> {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let mut fields = rest.split_ascii_whitespace();
        let permissions = fields.next()?;
        Some(Self {
            start: number(start)?,
            end: number(end)?,
            is_private: permissions.contains('p') && permissions.starts_with("rw"),
            name: fields.nth(3).unwrap_or_default(),
        })
    }

    fn touches(&self, range: &AddressRange) -> bool {
        self.start < range.end && range.start < self.end
    }

    fn looks_like_guest(&self) -> bool {
        let is_snapshot = self.name.ends_with("/memory");
        let is_large = self.end.saturating_sub(self.start) >= GUEST_LEAST;
        self.is_private && (is_snapshot || self.name.is_empty() && is_large)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
00400000-00500000 r-xp 00000000 fe:01 17                 /usr/bin/insula-vmm
Size:               1024 kB
Rss:                 800 kB
Pss:                 400 kB
Shared_Clean:        800 kB
Private_Dirty:         0 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0008000000 rw-p 00000000 fe:01 18         /snap/memory
Rss:               20480 kB
Pss:               10240 kB
Pss_Dirty:          4096 kB
Shared_Clean:      16384 kB
Private_Dirty:      4096 kB
Swap:                  8 kB
7f0010000000-7f0010021000 rw-p 00000000 00:00 0
Rss:                   4 kB
Pss:                   4 kB
Private_Dirty:         4 kB
7f0020000000-7f0028000000 rw-p 00000000 00:00 0
Rss:                 100 kB
Pss:                 100 kB
Private_Dirty:       100 kB
AnonHugePages:        64 kB
";

    #[test]
    fn what_the_process_says_counts_however_small_it_is() {
        // One change of a snapshot, and none of the others.
        let small = AddressRange {
            start: 0x7f00_1000_0000,
            end: 0x7f00_1002_1000,
        };
        let sums = parse(SMAPS, Some(&[small]));
        assert_eq!(sums.guest.rss, 4 << 10);
        let none = parse(SMAPS, Some(&[]));
        assert_eq!((none.guest.rss, none.vmm), (0, none.total));
    }

    #[test]
    fn guest_and_process_are_told_apart_by_their_looks() {
        let sums = parse(SMAPS, None);
        let kib = |kib: u64| kib * 1024;
        assert_eq!(sums.guest.pss, kib(10_240 + 100));
        assert_eq!(sums.guest.private, kib(4096 + 100));
        assert_eq!(sums.guest.shared, kib(16_384));
        assert_eq!(sums.guest.swap, kib(8));
        assert_eq!(sums.guest.huge, kib(64));
        assert_eq!(sums.vmm.pss, kib(404));
        assert_eq!(sums.vmm.rss, kib(804));
        assert_eq!(sums.total.pss, sums.guest.pss + sums.vmm.pss);
    }

    #[test]
    fn this_process_adds_up() {
        let text = fs::read_to_string("/proc/self/smaps").unwrap();
        let sums = parse(&text, None);
        assert!(sums.vmm.rss > 0);
        assert_eq!(sums.total.rss, sums.total.private + sums.total.shared);
    }
}

//! Ranges of user and group IDs: every VPS has 65,536 of its own.

use std::collections::BTreeSet;

use super::Error;

/// IDs per VPS.
pub const RANGE: u32 = 65_536;
/// Base of the lowest range.
const FIRST: u32 = 0x0010_0000;
/// Base behind the highest range: well below 2^31, where some file formats
/// and tools go wrong.
const END: u32 = 0x6fff_0000;

/// A range of [`RANGE`] IDs, aligned to its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct IdRange(u32);

impl IdRange {
    /// The range that begins at `base`.
    ///
    /// # Errors
    /// `base` is not aligned, or outside what VPSs may have.
    pub fn new(base: u32) -> Result<Self, Error> {
        if base.is_multiple_of(RANGE) && (FIRST..END).contains(&base) {
            Ok(Self(base))
        } else {
            Err(Error::Invalid(format!(
                "{base} is not the base of a VPS's ID range: use a multiple of {RANGE} from \
                 {FIRST} to {}",
                END - RANGE
            )))
        }
    }

    /// The range of a one-shot VPS, from the upper half of all ranges, that
    /// hardly any other process picks at the same time. Nothing that outlives
    /// the VPS is owned by these IDs.
    pub(crate) fn ephemeral(pid: u32) -> Self {
        Self(0x4000_0000 + ((pid & 0x1fff) << 16))
    }

    /// The ID, outside, of the VPS's root.
    pub fn base(self) -> u32 {
        self.0
    }

    /// The line for `uid_map` and `gid_map`.
    pub(crate) fn map_line(self) -> String {
        format!("0 {} {RANGE}\n", self.0)
    }
}

/// Which ranges are taken.
#[derive(Debug, Default)]
pub(crate) struct Allocator(BTreeSet<IdRange>);

impl Allocator {
    /// Takes the lowest free range.
    pub(crate) fn allocate(&mut self) -> Result<IdRange, Error> {
        let mut base = FIRST;
        for taken in &self.0 {
            if taken.0 != base {
                break;
            }
            base += RANGE;
        }
        if base >= 0x4000_0000 {
            return Err(Error::Exhausted(
                "no free ID range is left; destroy a VPS".into(),
            ));
        }
        self.0.insert(IdRange(base));
        Ok(IdRange(base))
    }

    /// Takes a range that was allocated earlier.
    pub(crate) fn reserve(&mut self, range: IdRange) -> Result<(), Error> {
        if self.0.insert(range) {
            Ok(())
        } else {
            Err(Error::Invalid(format!(
                "ID range {} belongs to two VPSs",
                range.0
            )))
        }
    }

    /// Gives a range back.
    pub(crate) fn release(&mut self, range: IdRange) {
        self.0.remove(&range);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_aligned_distinct_and_reused_only_after_release() {
        let mut allocator = Allocator::default();
        let a = allocator.allocate().unwrap();
        let b = allocator.allocate().unwrap();
        assert_eq!((a.base() % RANGE, b.base() - a.base()), (0, RANGE));
        allocator.release(a);
        assert_eq!(allocator.allocate().unwrap(), a);
        assert_eq!(allocator.allocate().unwrap().base(), b.base() + RANGE);
        assert!(allocator.reserve(b).is_err());
    }

    #[test]
    fn a_base_is_checked() {
        assert!(IdRange::new(FIRST).is_ok());
        for base in [0, 65_536, FIRST + 1, END, u32::MAX] {
            assert!(IdRange::new(base).is_err(), "{base}");
        }
        assert!(IdRange::new(IdRange::ephemeral(u32::MAX).base()).is_ok());
    }

    #[test]
    fn the_map_is_one_line() {
        assert_eq!(IdRange(0x0010_0000).map_line(), "0 1048576 65536\n");
    }
}

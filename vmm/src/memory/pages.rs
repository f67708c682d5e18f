//! Sets of pages, and parts of memory.

use std::ops::Range;

use minicbor::{Decode, Encode};

use super::PAGE_SIZE;

/// A part of guest memory, or of a file that holds it, in bytes; always whole
/// pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Extent {
    /// Where it starts: a guest-physical address or an offset.
    #[n(0)]
    pub start: u64,
    /// How long it is.
    #[n(1)]
    pub len: u64,
}

/// A set of pages of a memory or of the file that holds it, numbered from 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageSet {
    pages: u64,
    words: Vec<u64>,
}

impl PageSet {
    /// None of `pages` pages.
    pub fn none(pages: u64) -> Self {
        Self {
            pages,
            words: vec![0; pages.div_ceil(64) as usize],
        }
    }

    /// Takes in one page; one beyond the last is ignored.
    pub fn insert(&mut self, page: u64) {
        if page < self.pages
            && let Some(word) = self.words.get_mut((page / 64) as usize)
        {
            *word |= 1 << (page % 64);
        }
    }

    /// Takes in a range of pages, as far as there are so many.
    pub fn insert_range(&mut self, range: Range<u64>) {
        let mut page = range.start;
        let end = range.end.min(self.pages);
        while page < end {
            let in_word = page % 64;
            let count = (64 - in_word).min(end - page);
            if let Some(word) = self.words.get_mut((page / 64) as usize) {
                *word |= u64::MAX >> (64 - count) << in_word;
            }
            page += count;
        }
    }

    /// Takes in the bytes from `start` to `end`: every page that has one.
    pub fn insert_bytes(&mut self, start: u64, end: u64) {
        self.insert_range(start / PAGE_SIZE..end.div_ceil(PAGE_SIZE));
    }

    /// Takes in what is marked in `words`, a bit for each page from `first` on,
    /// the lowest first.
    pub fn insert_words(&mut self, first: u64, words: &[u64]) {
        for (index, &word) in words.iter().enumerate() {
            let mut left = word;
            while left != 0 {
                self.insert(first + index as u64 * 64 + u64::from(left.trailing_zeros()));
                left &= left - 1;
            }
        }
    }

    /// Takes in all that another set of as many pages has.
    pub fn insert_all(&mut self, other: &Self) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word |= other;
        }
    }

    /// Whether a page is in it.
    pub fn contains(&self, page: u64) -> bool {
        self.words
            .get((page / 64) as usize)
            .is_some_and(|word| word & 1 << (page % 64) != 0)
    }

    /// How many pages are in it.
    pub fn count(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum()
    }

    /// Its pages as ranges, in order, as long as they can be.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            let start = self.find(next, 0)?;
            let end = self.find(start, u64::MAX).unwrap_or(self.pages);
            next = end;
            Some(start..end.min(self.pages))
        })
    }

    /// The first page from `from` on whose bit differs from those of `skipped`.
    fn find(&self, from: u64, skipped: u64) -> Option<u64> {
        let mut index = (from / 64) as usize;
        let mut word = (self.words.get(index)? ^ skipped) & u64::MAX << (from % 64);
        while word == 0 {
            index += 1;
            word = self.words.get(index)? ^ skipped;
        }
        Some(index as u64 * 64 + u64::from(word.trailing_zeros()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_are_the_pages_and_as_long_as_can_be(
            pages in 1..300_u64,
            ranges in prop::collection::vec((0..320_u64, 0..100_u64), 0..6),
        ) {
            let mut set = PageSet::none(pages);
            let mut expected = vec![false; pages as usize];
            for (start, len) in ranges {
                set.insert_range(start..start + len);
                for page in start..(start + len).min(pages) {
                    expected[page as usize] = true;
                }
            }
            let mut found = vec![false; pages as usize];
            let mut last_end = None;
            for run in set.runs() {
                prop_assert!(run.start < run.end && run.end <= pages);
                prop_assert!(last_end < Some(run.start), "not merged");
                last_end = Some(run.end);
                found[run.start as usize..run.end as usize].fill(true);
            }
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(set.count(), found.iter().filter(|found| **found).count() as u64);
            for page in 0..pages {
                prop_assert_eq!(set.contains(page), found[page as usize]);
            }
        }

        #[test]
        fn words_may_start_anywhere(first in 0..100_u64, words in prop::collection::vec(any::<u64>(), 0..4)) {
            let mut set = PageSet::none(200);
            set.insert_words(first, &words);
            for page in 0..200 {
                let expected = page >= first && words.get(((page - first) / 64) as usize)
                    .is_some_and(|word| word & 1 << ((page - first) % 64) != 0);
                prop_assert_eq!(set.contains(page), expected, "page {}", page);
            }
        }
    }
}

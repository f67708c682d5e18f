//! The symbols of a kernel, from the `System.map` of its build.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::vcpu::Profile;

/// Linux's text is linked here; in its first instructions it runs at the
/// physical addresses, lower by so much.
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// Lowest address of the kernel's half.
const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;

/// Why there are no symbols.
#[derive(Debug, Error)]
pub enum SymbolsError {
    /// The file can't be read.
    #[error(
        "cannot read the kernel's symbols {}: {source}; put the System.map of the kernel's build \
             beside its image", path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is something else.
    #[error("{} has no symbols of code: is it a System.map?", path.display())]
    None {
        /// The file.
        path: PathBuf,
    },
}

/// Functions of a kernel by their addresses.
#[derive(Debug)]
pub struct Symbols(Vec<(u64, String)>);

impl Symbols {
    /// Those of a kernel image with its `System.map` beside it.
    ///
    /// # Errors
    /// [`SymbolsError`] names the file.
    pub fn of_kernel(image: &Path) -> Result<Self, SymbolsError> {
        let path = image.with_file_name("System.map");
        let text = fs::read_to_string(&path).map_err(|source| SymbolsError::Read {
            path: path.clone(),
            source,
        })?;
        let symbols = Self::parse(&text);
        if symbols.0.is_empty() {
            return Err(SymbolsError::None { path });
        }
        Ok(symbols)
    }

    /// Lines of address, type and name; only code counts.
    fn parse(text: &str) -> Self {
        let mut symbols: Vec<_> = text
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let address = u64::from_str_radix(words.next()?, 16).ok()?;
                let is_code = matches!(words.next()?, "t" | "T" | "w" | "W");
                (is_code && address >= KERNEL_HALF).then_some(())?;
                Some((address, words.next()?.to_owned()))
            })
            .collect();
        symbols.sort();
        // Of names for one address the first will do.
        symbols.dedup_by_key(|(address, _)| *address);
        Self(symbols)
    }

    /// What is executed at `address`.
    pub fn resolve(&self, address: u64) -> &str {
        let early = address.wrapping_add(KERNEL_MAP);
        self.function(address)
            .or_else(|| self.function(early))
            .unwrap_or(if address < KERNEL_HALF {
                "[user space]"
            } else {
                "[unknown]"
            })
    }

    fn function(&self, address: u64) -> Option<&str> {
        let next = self.0.partition_point(|(start, _)| *start <= address);
        // Behind the last one is whatever was loaded later.
        if next == self.0.len() {
            return None;
        }
        self.0.get(next.checked_sub(1)?).map(|(_, name)| &**name)
    }

    /// A profile's samples by function, the most frequent first.
    pub fn summarize(&self, profile: &Profile) -> Vec<(String, u64)> {
        let mut sums = HashMap::<&str, u64>::new();
        for (address, count) in &profile.addresses {
            *sums.entry(self.resolve(*address)).or_default() += count;
        }
        let mut sums: Vec<_> = sums
            .into_iter()
            .map(|(name, count)| (name.to_owned(), count))
            .collect();
        sums.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T startup_64
ffffffff81000000 T _text
ffffffff81000100 t first
ffffffff81000180 d data
ffffffff81000200 T second
ffffffff81000300 T _etext
not a line
";

    #[test]
    fn addresses_belong_to_the_function_before_them() {
        let symbols = Symbols::parse(MAP);
        for (address, name) in [
            (0xffff_ffff_8100_0000, "_text"),
            (0xffff_ffff_8100_01ff, "first"),
            (0x100_0123, "first"),
            (0xffff_ffff_8100_0200, "second"),
            (0xffff_ffff_c000_0000, "[unknown]"),
            (0x40_0000, "[user space]"),
            (0x7fff_0000_0000, "[user space]"),
        ] {
            assert_eq!(symbols.resolve(address), name, "{address:#x}");
        }
    }

    #[test]
    fn samples_are_summed_and_sorted() {
        let symbols = Symbols::parse(MAP);
        let profile = Profile {
            samples: 6,
            addresses: [
                (0xffff_ffff_8100_0101, 1),
                (0xffff_ffff_8100_0102, 1),
                (0xffff_ffff_8100_0201, 3),
                (0x1, 1),
            ]
            .into(),
        };
        let expected = [("second", 3), ("first", 2), ("[user space]", 1)];
        let sums = symbols.summarize(&profile);
        let sums: Vec<_> = sums.iter().map(|(name, n)| (&**name, *n)).collect();
        assert_eq!(sums, expected);
    }

    #[test]
    fn what_is_no_map_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("vmlinux");
        let error = Symbols::of_kernel(&image).unwrap_err().to_string();
        assert!(error.contains("System.map") && error.contains("beside its image"));
        fs::write(dir.path().join("System.map"), "garbage\n").unwrap();
        assert!(matches!(
            Symbols::of_kernel(&image),
            Err(SymbolsError::None { .. })
        ));
    }
}

//! What an image is made from, and the hash of all of it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{IoContext, Result};

/// Inputs with texts longer than this are described by their hash.
const DESCRIBED_TEXT: usize = 80;

/// The inputs of one image: labelled texts and files. Equal inputs make equal
/// images, so everything that matters must be here, the version of the recipe included.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    parts: BTreeMap<String, Part>,
}

#[derive(Debug, Clone)]
struct Part {
    /// SHA-256 of the content, in hexadecimal.
    sha256: String,
    /// The text itself where it is short.
    text: Option<String>,
}

impl Inputs {
    /// No inputs yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a text: a version, options, a configuration.
    #[must_use]
    pub fn text(mut self, label: impl Into<String>, text: impl AsRef<str>) -> Self {
        let text = text.as_ref();
        let short = text.len() <= DESCRIBED_TEXT && !text.contains('\n');
        self.parts.insert(
            label.into(),
            Part {
                sha256: sha256_bytes(text.as_bytes()),
                text: short.then(|| text.to_owned()),
            },
        );
        self
    }

    /// Adds the content of a file whose SHA-256 is already known.
    #[must_use]
    pub fn digest(mut self, label: impl Into<String>, sha256: impl Into<String>) -> Self {
        self.parts.insert(
            label.into(),
            Part {
                sha256: sha256.into(),
                text: None,
            },
        );
        self
    }

    /// Adds the content of a file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn file(self, label: impl Into<String>, path: &Path) -> Result<Self> {
        Ok(self.digest(label, sha256_file(path)?))
    }

    /// Adds the names and contents of all files below `dir`; `label` is put
    /// before their relative paths.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn tree(mut self, label: &str, dir: &Path) -> Result<Self> {
        for item in fs::read_dir(dir).at("list", dir)? {
            let item = item.at("list", dir)?;
            let label = format!("{label}/{}", item.file_name().to_string_lossy());
            let path = item.path();
            self = if item.file_type().at("examine", &path)?.is_dir() {
                self.tree(&label, &path)?
            } else {
                self.file(label, &path)?
            };
        }
        Ok(self)
    }

    /// The hash of all inputs.
    pub fn hash(&self) -> InputHash {
        let mut hasher = Sha256::new();
        for (label, part) in &self.parts {
            // The length keeps two labels and contents from running together.
            hasher.update((label.len() as u64).to_le_bytes());
            hasher.update(label);
            hasher.update(&part.sha256);
        }
        let mut text = hex(&hasher.finalize());
        // 128 bits: chance collisions are out of the question, and paths stay readable.
        text.truncate(32);
        InputHash(text)
    }

    /// Each label with its text if it is short, else with its SHA-256.
    pub(super) fn described(&self) -> BTreeMap<String, String> {
        let describe = |part: &Part| part.text.clone().unwrap_or_else(|| part.sha256.clone());
        self.parts
            .iter()
            .map(|(label, part)| (label.clone(), describe(part)))
            .collect()
    }
}

/// The hash of an image's inputs: 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InputHash(String);

impl InputHash {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InputHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<InputHash> for String {
    fn from(hash: InputHash) -> Self {
        hash.0
    }
}

impl TryFrom<String> for InputHash {
    type Error = String;

    /// A hash names a directory, so nothing but its digits is let in.
    fn try_from(text: String) -> std::result::Result<Self, String> {
        let digits = text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if text.len() == 32 && digits {
            Ok(Self(text))
        } else {
            Err(format!(
                "'{text}' is not an input hash (32 hexadecimal digits)"
            ))
        }
    }
}

/// The SHA-256 of `bytes`, in hexadecimal.
pub(crate) fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The SHA-256 of a file's content, in hexadecimal.
pub(crate) fn sha256_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).at("open", path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let n = file.read(&mut buffer).at("read", path)?;
        if n == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(buffer.get(..n).unwrap_or_default());
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
    ];
    bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .map(|d| DIGITS[usize::from(d)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_is_the_standard_one() {
        assert_eq!(
            sha256_bytes(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn every_label_and_content_counts() {
        let base = Inputs::new().text("a", "1").text("b", "2").hash();
        assert_eq!(base, Inputs::new().text("b", "2").text("a", "1").hash());
        for other in [
            Inputs::new().text("a", "1"),
            Inputs::new().text("a", "1").text("b", "3"),
            Inputs::new().text("a", "1").text("c", "2"),
            Inputs::new().text("a", "2").text("b", "1"),
        ] {
            assert_ne!(base, other.hash());
        }
    }

    #[test]
    fn a_tree_counts_names_and_contents() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/file"), "x").unwrap();
        let hash = || Inputs::new().tree("t", dir.path()).unwrap().hash();
        let before = hash();
        fs::rename(dir.path().join("sub/file"), dir.path().join("sub/other")).unwrap();
        assert_ne!(before, hash());
    }

    #[test]
    fn a_hash_from_a_file_is_only_digits() {
        assert!(InputHash::try_from("../../../../etc/passwd0000000000".to_owned()).is_err());
        assert!(InputHash::try_from("0".repeat(31)).is_err());
        assert!(InputHash::try_from("0123456789abcdef0123456789abcdef".to_owned()).is_ok());
    }
}

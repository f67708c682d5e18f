//! A sealed cache: images are found by name, and nothing is built.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Cache, Entry, InputHash, Kind};
use crate::error::{Error, IoContext, Result};

const SEALED_FILE: &str = "sealed.json";
const SEALED_VERSION: u32 = 1;

/// The content of `sealed.json`: which entry each name means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedIndex {
    version: u32,
    /// `kind/name` -> hash.
    images: BTreeMap<String, InputHash>,
}

impl SealedIndex {
    /// An index of these entries, by kind and name.
    pub fn of<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Self {
        let images = entries.into_iter().map(|entry| {
            let m = entry.manifest();
            (format!("{}/{}", m.kind, m.name), m.hash.clone())
        });
        Self {
            version: SEALED_VERSION,
            images: images.collect(),
        }
    }

    /// Writes it as the `sealed.json` of the cache in `root`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, root: &Path) -> Result<()> {
        let path = root.join(SEALED_FILE);
        let text = serde_json::to_vec_pretty(self).map_err(std::io::Error::from);
        text.and_then(|text| fs::write(&path, text))
            .at("write", &path)
    }
}

impl Cache {
    /// The index, if this cache is sealed.
    ///
    /// # Errors
    /// When `sealed.json` is there but cannot be read.
    pub fn sealed(&self) -> Result<Option<SealedIndex>> {
        let path = self.root().join(SEALED_FILE);
        let text = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.at("read", &path)?,
        };
        let bad = |reason: String| Error::BadFile {
            what: "sealed image index",
            path: path.clone(),
            reason,
            cure: "stop the lab and start it again",
        };
        let index: SealedIndex = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        if index.version != SEALED_VERSION {
            return Err(bad(format!(
                "it has version {}, not {SEALED_VERSION}",
                index.version
            )));
        }
        Ok(Some(index))
    }

    pub(super) fn find_sealed(&self, index: &SealedIndex, kind: Kind, name: &str) -> Result<Entry> {
        let missing = || Error::NotInSealedCache {
            cache: self.root().to_path_buf(),
            kind: kind.dir_name(),
            name: name.to_owned(),
            available: index.images.keys().cloned().collect::<Vec<_>>().join(", "),
        };
        let hash = index
            .images
            .get(&format!("{kind}/{name}"))
            .ok_or_else(missing)?;
        self.find(kind, hash)?.ok_or_else(missing)
    }
}

//! What is to be brought into the lab.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::error::{LabError, Result};
use crate::cache::{Cache, Entry, SealedIndex};
use crate::error::IoContext;

/// Where programs go; first in the lab's `PATH` but for `/usr/local/sbin`.
pub const PROGRAMS: &str = "/usr/local/bin";
/// The image cache in the lab.
pub const CACHE: &str = "/root/.cache/insula";

/// Files, by their places in the lab. Equal content is sent once, and only
/// what the lab does not have yet.
#[derive(Debug, Default)]
pub struct Payload {
    items: BTreeMap<String, Item>,
    /// Keeps content that is not in a file of its own until it is sent.
    made: Option<tempfile::TempDir>,
    entries: Vec<Entry>,
}

/// One file.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) source: PathBuf,
    pub(super) mode: u32,
    /// Leave out debug information, which is most of a program that was just
    /// compiled. Symbols stay.
    pub(super) strip: bool,
}

impl Payload {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a program, as [`PROGRAMS`]`/<its name>`.
    ///
    /// # Errors
    /// It is not a file, or its name is not UTF-8.
    pub fn program(&mut self, source: &Path) -> Result<&mut Self> {
        let Some(name) = source.file_name().and_then(|name| name.to_str()) else {
            return Err(refused(source, "its name is not UTF-8"));
        };
        let target = format!("{PROGRAMS}/{name}");
        self.add(source, target, 0o755, true)
    }

    /// Adds a file as `target`, an absolute path in the lab, with the
    /// permission bits that it has here.
    ///
    /// # Errors
    /// It is not a file, or `target` is not absolute.
    pub fn file(&mut self, source: &Path, target: &str) -> Result<&mut Self> {
        let meta = fs::metadata(source).at("examine", source)?;
        self.add(
            source,
            target.to_owned(),
            meta.permissions().mode() & 0o777,
            false,
        )
    }

    /// Adds content that is not in a file here.
    ///
    /// # Errors
    /// No temporary file can be written, or `target` is not absolute.
    pub fn content(&mut self, content: &[u8], target: &str, mode: u32) -> Result<&mut Self> {
        let dir = if let Some(dir) = &self.made {
            dir.path().to_owned()
        } else {
            let dir = tempfile::tempdir();
            let dir = dir.at("create a temporary directory in", &std::env::temp_dir())?;
            self.made.insert(dir).path().to_owned()
        };
        let source = dir.join(self.items.len().to_string());
        fs::write(&source, content).at("write", &source)?;
        self.add(&source, target.to_owned(), mode, false)
    }

    /// Adds an image from the cache: in the lab it is found by its name.
    ///
    /// # Errors
    /// One of its files is missing.
    pub fn image(&mut self, entry: &Entry) -> Result<&mut Self> {
        let manifest = entry.manifest();
        let dir = format!("{CACHE}/{}/{}", manifest.kind, manifest.hash);
        let files = manifest.files.iter().map(|file| file.path.as_str());
        for file in files.chain(["manifest.json"]) {
            self.file(&entry.path(file), &format!("{dir}/{file}"))?;
        }
        self.entries.push(entry.clone());
        Ok(self)
    }

    /// All files with their places, the index of the images included.
    pub(super) fn complete(&mut self) -> Result<&BTreeMap<String, Item>> {
        if !self.entries.is_empty() {
            let index = tempfile::tempdir();
            let index = index.at("create a temporary directory in", &std::env::temp_dir())?;
            SealedIndex::of(&self.entries).write(index.path())?;
            let path = index.path().join("sealed.json");
            let text = fs::read(&path).at("read", &path)?;
            self.content(&text, &format!("{CACHE}/sealed.json"), 0o644)?;
        }
        Ok(&self.items)
    }

    fn add(&mut self, source: &Path, target: String, mode: u32, strip: bool) -> Result<&mut Self> {
        let meta = fs::metadata(source).at("examine", source)?;
        if !meta.is_file() {
            return Err(refused(source, "it is not a file"));
        }
        let plain = target.starts_with('/')
            && target
                .split('/')
                .skip(1)
                .all(|part| !matches!(part, "" | "." | ".."))
            && !target.contains(|c: char| c.is_control());
        if !plain {
            return Err(refused(
                source,
                &format!("{target:?} is not a plain absolute path"),
            ));
        }
        let source = std::path::absolute(source).at("find", source)?;
        self.items.insert(
            target,
            Item {
                source,
                mode,
                strip,
            },
        );
        Ok(self)
    }
}

impl Item {
    /// Names the content as it will be in the lab: equal names, equal files.
    pub(super) fn object(&self, cache: &Cache) -> Result<String> {
        let sha256 = cache.file_sha256(&self.source)?;
        let stripped = if self.strip { "-stripped" } else { "" };
        Ok(format!("{sha256}-{:o}{stripped}", self.mode))
    }
}

fn refused(path: &Path, reason: &str) -> LabError {
    LabError::Payload {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Inputs, Kind};
    use crate::progress::Progress;

    #[test]
    fn equal_content_is_one_object_unless_its_mode_differs() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache"));
        let source = dir.path().join("tool");
        fs::write(&source, "same").unwrap();
        fs::set_permissions(&source, fs::Permissions::from_mode(0o600)).unwrap();
        let mut payload = Payload::new();
        payload.file(&source, "/etc/a").unwrap();
        payload.content(b"same", "/etc/b", 0o600).unwrap();
        payload.content(b"same", "/etc/c", 0o644).unwrap();
        payload.program(&source).unwrap();
        let objects: Vec<_> = payload
            .complete()
            .unwrap()
            .values()
            .map(|item| item.object(&cache).unwrap())
            .collect();
        assert_eq!(objects[0], objects[1]);
        assert_ne!(objects[0], objects[2]);
        assert!(objects[3].ends_with("-755-stripped"), "{objects:?}");
        assert!(payload.items.contains_key("/usr/local/bin/tool"));
    }

    #[test]
    fn targets_are_plain_absolute_paths() {
        for target in ["etc/a", "/etc/../a", "/etc//a", "/a\n", "/a/"] {
            let error = Payload::new()
                .content(b"", target, 0o644)
                .unwrap_err()
                .to_string();
            assert!(error.contains("absolute"), "{error}");
        }
        assert!(Payload::new().program(Path::new("/etc")).is_err());
    }

    #[test]
    fn images_come_with_their_manifest_and_an_index() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let build = |out: &Path| fs::write(out.join("root.erofs"), "x").at("write", out);
        let progress = Progress::silent();
        let entry = cache
            .ensure(Kind::Template, "busybox", &Inputs::new(), &progress, build)
            .unwrap();
        let mut payload = Payload::new();
        payload.image(&entry).unwrap();
        let hash = entry.manifest().hash.to_string();
        let targets: Vec<_> = payload.complete().unwrap().keys().cloned().collect();
        let at = |file: &str| format!("{CACHE}/{file}");
        assert_eq!(
            targets,
            [
                at("sealed.json"),
                at(&format!("template/{hash}/manifest.json")),
                at(&format!("template/{hash}/root.erofs")),
            ]
        );
    }
}

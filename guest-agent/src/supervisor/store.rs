//! VPS definitions on the data disk.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use minicbor::{Decode, Encode};

use crate::protocol::{Exit, Name, VpsSpec};
use crate::vps::{IdRange, Vps};

/// Version of the format that is written; newer ones are refused.
const VERSION: u16 = 1;

/// What is remembered of a VPS, in `vps/NAME.cbor`. The VPS's files are in
/// `vps/NAME/` beside it; a directory without such a file is a leftover.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Definition {
    #[n(0)]
    version: u16,
    #[n(1)]
    pub(crate) spec: VpsSpec,
    #[n(2)]
    id_base: u32,
    #[cbor(n(3), with = "minicbor::bytes")]
    uuid: [u8; 16],
    #[n(4)]
    pub(crate) boot_count: u32,
    #[n(5)]
    pub(crate) last_exit: Option<Exit>,
}

/// The version alone, which every version of the format has.
#[derive(Debug, Decode)]
#[cbor(map)]
struct Versioned {
    #[n(0)]
    version: u16,
}

impl Definition {
    pub(crate) fn new(vps: &Vps, boot_count: u32, last_exit: Option<Exit>) -> Self {
        Self {
            version: VERSION,
            spec: vps.spec.clone(),
            id_base: vps.ids.base(),
            uuid: vps.uuid,
            boot_count,
            last_exit,
        }
    }

    /// The VPS as the engine knows it.
    pub(crate) fn vps(&self) -> Result<Vps, String> {
        let ids = IdRange::new(self.id_base).map_err(|e| e.to_string())?;
        Ok(Vps {
            spec: self.spec.clone(),
            ids,
            uuid: self.uuid,
        })
    }
}

/// A directory of definitions.
#[derive(Debug)]
pub(crate) struct Store {
    directory: PathBuf,
}

/// What a store holds.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) definitions: Vec<Definition>,
    /// Names of definitions that can't be read, and why.
    pub(crate) unreadable: Vec<(String, String)>,
    /// Directories of VPSs that were not wholly made, or not wholly destroyed.
    pub(crate) leftovers: Vec<PathBuf>,
}

impl Store {
    /// The store in `state`, made when missing.
    pub(crate) fn open(state: &Path) -> io::Result<Self> {
        let directory = state.join("vps");
        fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    fn path(&self, name: &Name) -> PathBuf {
        self.directory.join(format!("{name}.cbor"))
    }

    /// Writes a definition so that it is there whole or as it was. `durable`:
    /// it is on the disk when this returns, and not just soon.
    pub(crate) fn save(&self, definition: &Definition, durable: bool) -> io::Result<()> {
        let path = self.path(&definition.spec.name);
        let part = path.with_extension("part");
        let bytes = minicbor::to_vec(definition).map_err(io::Error::other)?;
        let mut file = File::create(&part)?;
        file.write_all(&bytes)?;
        if durable {
            file.sync_all()?;
        }
        drop(file);
        fs::rename(&part, &path)?;
        if durable {
            File::open(&self.directory)?.sync_all()?;
        }
        Ok(())
    }

    /// Removes a definition: from here on the VPS's files are a leftover.
    pub(crate) fn remove(&self, name: &Name) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => File::open(&self.directory)?.sync_all(),
        }
    }

    /// Reads everything.
    pub(crate) fn load(&self) -> io::Result<Contents> {
        let mut contents = Contents::default();
        let mut directories = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let stem = path
                .file_stem()
                .and_then(|s| s.to_str())
                .unwrap_or_default()
                .to_owned();
            match path.extension().and_then(|e| e.to_str()) {
                Some("cbor") => match read(&path) {
                    Ok(definition) if definition.spec.name.as_str() == stem => {
                        contents.definitions.push(definition);
                    }
                    Ok(_) => contents
                        .unreadable
                        .push((stem, "it is another VPS's".into())),
                    Err(why) => contents.unreadable.push((stem, why)),
                },
                Some("part") => fs::remove_file(&path)?,
                _ if path.is_dir() => directories.push((stem, path)),
                _ => {}
            }
        }
        contents.leftovers = directories
            .into_iter()
            .filter(|(stem, _)| {
                !contents
                    .definitions
                    .iter()
                    .any(|d| d.spec.name.as_str() == stem)
                    && !contents.unreadable.iter().any(|(name, _)| name == stem)
            })
            .map(|(_, path)| path)
            .collect();
        contents
            .definitions
            .sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        Ok(contents)
    }
}

fn read(path: &Path) -> Result<Definition, String> {
    let bytes = fs::read(path).map_err(|e| e.to_string())?;
    let Versioned { version } = minicbor::decode(&bytes).map_err(|e| e.to_string())?;
    if version > VERSION {
        return Err(format!(
            "it has version {version} and this agent knows versions up to {VERSION}; use a \
             newer agent"
        ));
    }
    minicbor::decode(&bytes).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Init, Limits, RestartPolicy};

    fn definition(name: &str) -> Definition {
        Definition {
            version: VERSION,
            spec: VpsSpec {
                name: Name::new(name).unwrap(),
                template: Name::new("busybox").unwrap(),
                hostname: None,
                init: Init::Template,
                limits: Limits::default(),
                autostart: true,
                restart: RestartPolicy::AllowReboot,
            },
            id_base: 1_048_576,
            uuid: [7; 16],
            boot_count: 3,
            last_exit: Some(Exit::Reboot),
        }
    }

    #[test]
    fn definitions_survive_and_leftovers_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for name in ["web", "db"] {
            store.save(&definition(name), name == "db").unwrap();
            fs::create_dir(dir.path().join("vps").join(name)).unwrap();
        }
        fs::create_dir(dir.path().join("vps/half-made")).unwrap();
        fs::write(dir.path().join("vps/x.part"), b"").unwrap();
        let contents = Store::open(dir.path()).unwrap().load().unwrap();
        assert_eq!(contents.definitions, [definition("db"), definition("web")]);
        assert!(contents.unreadable.is_empty());
        assert_eq!(contents.leftovers, [dir.path().join("vps/half-made")]);
        assert_eq!(definition("web").vps().unwrap().ids.base(), 1_048_576);

        store.remove(&Name::new("web").unwrap()).unwrap();
        store.remove(&Name::new("web").unwrap()).unwrap();
        let contents = store.load().unwrap();
        assert_eq!(contents.definitions.len(), 1);
        assert_eq!(contents.leftovers.len(), 2);
    }

    #[test]
    fn what_cannot_be_read_is_named_and_its_files_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut newer = definition("newer");
        newer.version = VERSION + 1;
        store.save(&newer, false).unwrap();
        fs::write(dir.path().join("vps/torn.cbor"), [0xa3, 0x00]).unwrap();
        fs::create_dir(dir.path().join("vps/torn")).unwrap();
        let mut contents = store.load().unwrap();
        contents.unreadable.sort();
        assert!(contents.definitions.is_empty() && contents.leftovers.is_empty());
        assert_eq!(contents.unreadable.len(), 2);
        assert_eq!(contents.unreadable[0].0, "newer");
        assert!(
            contents.unreadable[0].1.contains("newer agent"),
            "{:?}",
            contents.unreadable
        );
    }
}

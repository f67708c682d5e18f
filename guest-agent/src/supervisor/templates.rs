//! The templates that VPSs can start from.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use crate::protocol::Name;
use crate::vps::TemplateSource;

/// Where templates come from.
#[derive(Debug, Clone, Default)]
pub struct Templates {
    /// By name.
    pub named: BTreeMap<Name, TemplateSource>,
    /// A directory with `NAME.erofs` images and `NAME/` directories.
    pub directory: Option<PathBuf>,
    /// Where images are mounted, each in a directory of its name.
    pub mount_dir: PathBuf,
}

impl Templates {
    pub(super) fn source(&self, name: &Name) -> Option<TemplateSource> {
        if let Some(source) = self.named.get(name) {
            return Some(source.clone());
        }
        let directory = self.directory.as_ref()?;
        let image = directory.join(format!("{name}.erofs"));
        if image.is_file() {
            return Some(TemplateSource::Erofs(image));
        }
        let tree = directory.join(name.as_str());
        tree.is_dir().then_some(TemplateSource::Directory(tree))
    }

    /// The names of all of them.
    pub(crate) fn names(&self) -> Vec<Name> {
        let mut names: Vec<Name> = self.named.keys().cloned().collect();
        let entries = self
            .directory
            .as_ref()
            .and_then(|path| fs::read_dir(path).ok());
        for entry in entries.into_iter().flatten().flatten() {
            let file_name = entry.file_name();
            let Some(text) = file_name.to_str() else {
                continue;
            };
            let stem = text.strip_suffix(".erofs").unwrap_or(text);
            let Ok(name) = Name::new(stem) else { continue };
            if !names.contains(&name) && self.source(&name).is_some() {
                names.push(name);
            }
        }
        names.sort();
        names
    }
}

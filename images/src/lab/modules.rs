//! The emulated host's kernel modules: which ones, and in which order.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, IoContext, Result};
use crate::packages;

/// What is loaded before the root disk is mounted. Dependencies come by
/// themselves; names that a kernel has built in are skipped.
pub(super) const WANTED: [&str; 14] = [
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "kvm",
    "kvm_amd",
    "overlay",
    "erofs",
    "loop",
    "bridge",
    "veth",
    "tun",
    "quota_v2",
    "nf_tables",
    "nft_chain_nat",
];

/// Modules without which the lab is none.
const REQUIRED: [&str; 1] = ["kvm_amd"];

/// A module, ready to be loaded.
#[derive(Debug)]
pub(super) struct Module {
    /// Its name, with underscores.
    pub(super) name: String,
    /// Its uncompressed object.
    pub(super) object: Vec<u8>,
}

/// The modules of [`WANTED`] and what they depend on, from the tree of modules
/// `dir`, in an order in which they can be loaded.
pub(super) fn collect(dir: &Path) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    find(dir, &mut files)?;
    let mut loaded = HashSet::new();
    let mut order = Vec::new();
    for name in WANTED {
        if REQUIRED.contains(&name) && !files.contains_key(name) {
            return Err(Error::Invalid {
                what: "the lab's kernel package",
                reason: format!("it has no module {name} in {}", dir.display()),
            });
        }
        load(name, &files, &mut loaded, &mut order)?;
    }
    Ok(order)
}

fn load(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    loaded: &mut HashSet<String>,
    order: &mut Vec<Module>,
) -> Result<()> {
    if !loaded.insert(name.to_owned()) {
        return Ok(());
    }
    let Some(path) = files.get(name) else {
        return Ok(());
    };
    let object = read(path)?;
    for dependency in dependencies(&object) {
        load(&dependency, files, loaded, order)?;
    }
    order.push(Module {
        name: name.to_owned(),
        object,
    });
    Ok(())
}

/// All modules below `dir` by name.
fn find(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for item in std::fs::read_dir(dir).at("list", dir)? {
        let item = item.at("list", dir)?;
        let path = item.path();
        if item.file_type().at("examine", &path)?.is_dir() {
            find(&path, files)?;
        } else if let Some((stem, _)) = item.file_name().to_string_lossy().split_once(".ko") {
            files.insert(stem.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let (tool, package) = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => ("xz", "xz-utils"),
        Some("zst") => ("zstd", "zstd"),
        Some("gz") => ("gzip", "gzip"),
        _ => return std::fs::read(path).at("read", path),
    };
    let output = Command::new(packages::tool(tool, package)?)
        .args(["--decompress", "--stdout"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .at("decompress", path)?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(Error::Command {
            command: format!("{tool} --decompress --stdout {}", path.display()),
            status: output.status.to_string(),
            output: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

/// The `depends=a,b` of a module's `.modinfo`, which is a list of C strings.
fn dependencies(object: &[u8]) -> Vec<String> {
    object
        .split(|&b| b == 0)
        .find_map(|text| text.strip_prefix(b"depends="))
        .map(|list| {
            let list = String::from_utf8_lossy(list);
            let names = list.split(',').filter(|name| !name.is_empty());
            names.map(|name| name.replace('-', "_")).collect()
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_loaded_first_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let module = |path: &str, depends: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(
                path,
                format!("\x7fELF\0license=GPL\0depends={depends}\0x\0"),
            )
            .unwrap();
        };
        module("arch/kvm/kvm-amd.ko", "kvm,ccp");
        module("arch/kvm/kvm.ko", "irqbypass");
        module("virt/irqbypass.ko", "");
        module("net/virtio_net.ko", "net-failover");
        module("net/net_failover.ko", "");
        let names: Vec<_> = collect(dir.path())
            .unwrap()
            .into_iter()
            .map(|module| module.name)
            .collect();
        assert_eq!(
            names,
            ["net_failover", "virtio_net", "irqbypass", "kvm", "kvm_amd"]
        );
    }

    #[test]
    fn a_kernel_without_svm_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = collect(dir.path()).unwrap_err().to_string();
        assert!(error.contains("kvm_amd"), "{error}");
    }

    #[test]
    fn a_module_without_modinfo_depends_on_nothing() {
        assert!(dependencies(b"\x7fELF").is_empty());
        assert!(dependencies(b"depends=\0").is_empty());
    }
}

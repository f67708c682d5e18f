//! Opens a snapshot, and finds out whether it is what it should be.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Kvm;

use super::cpu::CpuMismatch;
use super::error::SnapshotError;
use super::files::{DISKS, MEMORY, STATE};
use super::stamp::{Stamp, identity};
use super::state::{DiskFile, FileContent, MachineState, SnapshotId, unix_ns};
use super::writer::{SnapshotRef, id_of};
use super::{cpu, digest, file};
use crate::kvm::supported::SupportedLeaves;
use crate::kvm::{KvmError, refused};
use crate::memory::{Backing, GuestMemory, MemoryFile, RestoreMode, restore};

/// Bytes of the largest state file that is looked at.
const MOST_STATE: u64 = 64 << 20;
/// Snapshots that may lie below another.
pub(super) const MOST_LAYERS: usize = 32;

/// A snapshot whose files are what they were when it was taken.
#[derive(Debug)]
pub struct Snapshot {
    dir: PathBuf,
    state: MachineState,
    bytes: Vec<u8>,
    memory: Arc<File>,
    parent: Option<Box<Snapshot>>,
}

impl Snapshot {
    /// Opens the snapshot in a directory, and those below it. All files are
    /// checked: the state whenever this is called, memory and disks when they
    /// were not found good since they were last written to.
    ///
    /// # Errors
    /// [`SnapshotError`]: which file is not what it should be, and why.
    pub fn open(dir: &Path) -> Result<Self, SnapshotError> {
        // As it was given: finding out where it really is would take longer
        // than all the rest.
        let dir = std::path::absolute(dir).map_err(SnapshotError::io("find", dir))?;
        Self::open_layer(dir, MOST_LAYERS)
    }

    fn open_layer(dir: PathBuf, layers: usize) -> Result<Self, SnapshotError> {
        let path = dir.join(STATE);
        let bytes = read_state(&dir, &path)?;
        let state = file::decode(&bytes, &path)?;
        state.check().map_err(|why| SnapshotError::Malformed {
            path: path.clone(),
            why,
        })?;
        let memory = check_files(&dir, &bytes, &state)?;
        let parent = match &state.memory.parent {
            None => None,
            Some(_) if layers == 0 => {
                return Err(SnapshotError::TooManyLayers {
                    path: dir,
                    limit: MOST_LAYERS,
                });
            }
            Some(parent) => {
                let place = dir.join(&parent.dir);
                let place = fs::canonicalize(&place).map_err(SnapshotError::io(
                    "find the snapshot that this one is a change of,",
                    &place,
                ))?;
                let below = Self::open_layer(place, layers - 1)?;
                if below.id() != parent.id {
                    return Err(SnapshotError::WrongParent {
                        path: dir,
                        expected: parent.id,
                        found: below.id(),
                        parent: below.dir,
                    });
                }
                if below.state.memory.ranges != state.memory.ranges {
                    return Err(SnapshotError::Malformed {
                        path,
                        why: "its memory is not where its parent's is".to_owned(),
                    });
                }
                Some(Box::new(below))
            }
        };
        Ok(Self {
            dir,
            state,
            bytes,
            memory: Arc::new(memory),
            parent,
        })
    }

    /// What it says.
    pub fn state(&self) -> &MachineState {
        &self.state
    }

    /// Where it is: an absolute path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Which it is. Takes a look at every byte of the state.
    pub fn id(&self) -> SnapshotId {
        id_of(&self.bytes)
    }

    /// For a snapshot of what changes from here on.
    pub fn as_parent(&self) -> SnapshotRef {
        SnapshotRef {
            id: self.id(),
            dir: fs::canonicalize(&self.dir).unwrap_or_else(|_| self.dir.clone()),
        }
    }

    /// The one that this is a change of.
    pub fn into_parent(self) -> Option<Self> {
        self.parent.map(|parent| *parent)
    }

    /// The copy of a disk that the guest could write.
    pub fn disk_copy(&self, disk: &DiskFile) -> Option<PathBuf> {
        disk.file
            .as_ref()
            .map(|name| self.dir.join(DISKS).join(name))
    }

    /// Checks that this host's processor and KVM can run the guest. With
    /// `force`, another model with the same features is accepted.
    ///
    /// # Errors
    /// [`SnapshotError::Cpu`] or [`SnapshotError::Kvm`].
    pub fn check_host(&self, kvm: &Kvm, force: bool) -> Result<(), SnapshotError> {
        let mut leaves = SupportedLeaves::default();
        let supported = leaves.read(kvm)?;
        let saved = &self.state.cpuid.0;
        let checked = match cpu::check(saved, supported, force) {
            Err(CpuMismatch::Features { .. }) => {
                cpu::check(saved, shown_leaves(kvm)?.as_slice(), force)
            }
            checked => checked,
        };
        Ok(checked?)
    }

    /// The files that the memory is in, the lowest layer first.
    pub fn backing(&self) -> Backing {
        let mut layers = Vec::new();
        let mut layer = Some(self);
        while let Some(snapshot) = layer {
            layers.push(MemoryFile {
                file: Arc::clone(&snapshot.memory),
                parts: snapshot
                    .parent
                    .is_some()
                    .then(|| snapshot.state.memory.changed.clone()),
            });
            layer = snapshot.parent.as_deref();
        }
        layers.reverse();
        Backing(layers)
    }

    /// The guest's memory as it was, and what it comes from: a later snapshot
    /// needs that.
    ///
    /// # Errors
    /// [`SnapshotError::Memory`].
    pub fn restore_memory(
        &self,
        mode: RestoreMode,
    ) -> Result<(GuestMemory, Backing), SnapshotError> {
        let backing = self.backing();
        let memory = restore(&self.state.memory.ranges, &backing, mode)?;
        Ok((memory, backing))
    }
}

/// What a processor shows that was given the supported leaves: the KVM of PVM
/// hosts adds features of the host's processor to them, whatever it is told.
fn shown_leaves(kvm: &Kvm) -> Result<CpuId, KvmError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(refused("list the supported CPUID leaves"))?;
    let vm = kvm
        .create_vm()
        .map_err(refused("create a virtual machine to look at"))?;
    let vcpu = vm
        .create_vcpu(0)
        .map_err(refused("create a virtual processor to look at"))?;
    vcpu.set_cpuid2(&supported)
        .map_err(refused("set a virtual processor's CPUID"))?;
    vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES)
        .map_err(refused("read a virtual processor's CPUID"))
}

fn read_state(dir: &Path, path: &Path) -> Result<Vec<u8>, SnapshotError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(SnapshotError::Missing {
                path: dir.to_owned(),
            });
        }
        Err(error) => return Err(SnapshotError::io("open", path)(error)),
    };
    let length = file
        .metadata()
        .map_err(SnapshotError::io("look at", path))?
        .len();
    if length > MOST_STATE {
        return Err(SnapshotError::Foreign {
            path: path.to_owned(),
        });
    }
    // What is appended meanwhile is not read, but a later look finds it.
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0)
        .map_err(SnapshotError::io("read", path))?;
    Ok(bytes)
}

/// Checks the large files, and returns that of the memory.
fn check_files(dir: &Path, bytes: &[u8], state: &MachineState) -> Result<File, SnapshotError> {
    let mut files = Vec::with_capacity(1 + state.disks.len());
    let open = |path: PathBuf| match File::open(&path) {
        Ok(file) => Ok((path, file)),
        Err(error) => Err(SnapshotError::io("open", &path)(error)),
    };
    files.push((open(dir.join(MEMORY))?, &state.memory.content));
    for disk in &state.disks {
        match (&disk.file, &disk.content) {
            (Some(name), Some(content)) => {
                files.push((open(dir.join(DISKS).join(name))?, content));
            }
            _ => check_noted(disk)?,
        }
    }
    let identities = || {
        files
            .iter()
            .map(|((path, file), _)| identity(file).map_err(SnapshotError::io("look at", path)))
            .collect::<Result<Vec<_>, _>>()
    };
    let before = identities()?;
    let checksum = file::checksum(bytes);
    if !Stamp::new(checksum, before.clone()).is_in(dir) {
        Stamp::settle(&before);
        for ((path, file), content) in &files {
            check_content(path, file, content)?;
        }
        // Nobody wrote to them meanwhile.
        if identities()? == before {
            Stamp::new(checksum, before).put(dir);
        }
    }
    let ((_, memory), _) = files.swap_remove(0);
    Ok(memory)
}

fn check_content(path: &Path, file: &File, content: &FileContent) -> Result<(), SnapshotError> {
    let path = || path.to_owned();
    let size = file
        .metadata()
        .map_err(SnapshotError::io("look at", &path()))?
        .len();
    if size < content.size {
        return Err(SnapshotError::Truncated {
            path: path(),
            found: size,
            expected: content.size,
        });
    }
    if digest::of_file(file, &path())? != *content {
        return Err(SnapshotError::Altered {
            path: path(),
            how: "its content has another SHA-256".to_owned(),
        });
    }
    Ok(())
}

/// A disk that was not copied must be as it was.
fn check_noted(disk: &DiskFile) -> Result<(), SnapshotError> {
    let Some(path) = disk.path.as_ref().map(Path::new) else {
        return Ok(());
    };
    let metadata = fs::metadata(path).map_err(SnapshotError::io(
        "find a disk that the snapshot's guest reads,",
        path,
    ))?;
    if disk.identity != Some((metadata.size(), unix_ns(&metadata))) {
        return Err(SnapshotError::Altered {
            path: path.to_owned(),
            how: format!(
                "it is drive {} of the guest, which only read it",
                disk.drive_id
            ),
        });
    }
    Ok(())
}

//! Takes a snapshot.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::kvm_cpuid_entry2;
use sha2::{Digest, Sha256};

use super::directory::{PartialDir, sync_dir};
use super::disk_copy::copy_disk;
use super::error::SnapshotError;
use super::files::{DISKS, MEMORY, STATE};
use super::load::{MOST_LAYERS, Snapshot};
use super::stamp::{Stamp, identity};
use super::state::{DeviceState, DiskFile, MachineState, MemoryLayer, Parent, SnapshotId, unix_ns};
use super::vm::VmState;
use super::{digest, file, memory_file};
use crate::kvm::plain::BytesList;
use crate::machine::boot_timer::Spans;
use crate::memory::{Backing, Extent, GuestMemory, PAGE_SIZE, PageSet};
use crate::vcpu::VcpuState;

/// A snapshot that another may be a change of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRef {
    /// Which it is.
    pub id: SnapshotId,
    /// Where it is: an absolute path.
    pub dir: PathBuf,
}

/// The part of a machine's memory that is saved.
#[derive(Debug, Clone, Copy)]
pub enum MemoryToSave<'a> {
    /// Everything. `backing` is what the memory was restored from, if it was.
    All {
        /// What of it was not loaded is in here.
        backing: &'a Backing,
    },
    /// What has changed since another snapshot.
    Changes {
        /// The pages that have, counted through the memory's ranges in order.
        changed: &'a PageSet,
        /// Since which.
        parent: &'a SnapshotRef,
    },
}

/// What a machine says of itself, besides its memory and disks.
#[derive(Debug, Clone)]
pub struct SavedMachine {
    /// Its configuration, as JSON.
    pub config: String,
    /// CPUID of its first processor.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Its processors, by number.
    pub vcpus: Vec<VcpuState>,
    /// Interrupt controllers, timer and clock.
    pub vm: VmState,
    /// Its devices.
    pub devices: Vec<DeviceState>,
    /// Its start.
    pub boot: Spans,
    /// By what its agent proves itself.
    pub nonce: Option<[u8; 16]>,
}

/// A snapshot that was taken.
#[derive(Debug, Clone)]
pub struct Taken {
    /// Which and where it is.
    pub snapshot: SnapshotRef,
    /// Bytes of memory that were written.
    pub memory_bytes: u64,
    /// Bytes of the state file.
    pub state_bytes: u64,
}

/// A snapshot that is being taken. Nothing of it is to be seen in its place
/// before it is [finished](Self::finish), and nothing is left of one that is not.
#[derive(Debug)]
pub struct SnapshotWriter {
    dir: PartialDir,
    memory: MemoryLayer,
    disks: Vec<DiskFile>,
}

impl SnapshotWriter {
    /// Begins a snapshot in the directory `target`, where there may be an older
    /// one, and saves the memory. No processor may be running and no device
    /// working until this returns and the disks are copied.
    ///
    /// # Errors
    /// The directory cannot be made, something else is there, there is no room,
    /// or the parent is not what it was.
    pub fn create(
        target: &Path,
        memory: &GuestMemory,
        save: MemoryToSave<'_>,
    ) -> Result<Self, SnapshotError> {
        let dir = PartialDir::create(target)?;
        let path = dir.path().join(MEMORY);
        let (pages, parent, changed) = match save {
            MemoryToSave::All { backing } => (
                memory_file::used_pages(memory, backing, &path)?,
                None,
                Vec::new(),
            ),
            MemoryToSave::Changes { changed, parent } => {
                check_parent(parent, dir.target())?;
                let extents = changed.runs().map(|run| Extent {
                    start: run.start * PAGE_SIZE,
                    len: (run.end - run.start) * PAGE_SIZE,
                });
                let parent = Parent {
                    id: parent.id,
                    dir: relative_to(&parent.dir, dir.target()),
                };
                (changed.clone(), Some(parent), extents.collect())
            }
        };
        let content = memory_file::write(memory, &pages, &path)?;
        Ok(Self {
            dir,
            memory: MemoryLayer {
                ranges: memory_file::ranges(memory),
                content,
                parent,
                changed,
            },
            disks: Vec::new(),
        })
    }

    /// Copies a disk that the guest can write, from its open file.
    ///
    /// # Errors
    /// [`SnapshotError::NoRoom`] or [`SnapshotError::Io`].
    pub fn copy_disk(&mut self, drive_id: &str, disk: &File) -> Result<(), SnapshotError> {
        let disks = self.dir.path().join(DISKS);
        if self.disks.iter().all(|disk| disk.file.is_none()) {
            DirBuilder::new()
                .mode(0o700)
                .create(&disks)
                .map_err(SnapshotError::io("make", &disks))?;
        }
        // By number: what a drive is called need not be a file name.
        let name = self.disks.len().to_string();
        copy_disk(disk, &disks.join(&name))?;
        self.disks.push(DiskFile {
            drive_id: drive_id.to_owned(),
            file: Some(name),
            content: None,
            path: None,
            identity: None,
        });
        Ok(())
    }

    /// Notes a disk that the guest only reads: it must stay where it is.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn note_disk(
        &mut self,
        drive_id: &str,
        path: &Path,
        disk: &File,
    ) -> Result<(), SnapshotError> {
        let failed = |source| SnapshotError::io("find the disk", path)(source);
        let metadata = disk.metadata().map_err(failed)?;
        let path = fs::canonicalize(path).map_err(failed)?;
        self.disks.push(DiskFile {
            drive_id: drive_id.to_owned(),
            file: None,
            content: None,
            path: Some(path.to_string_lossy().into_owned()),
            identity: Some((metadata.size(), unix_ns(&metadata))),
        });
        Ok(())
    }

    /// Writes the state, and puts the snapshot in its place, on disk when this
    /// returns. The machine may run again meanwhile. It is only put there if
    /// it `is_wanted` still when all is written, which takes long.
    ///
    /// # Errors
    /// [`SnapshotError::NoRoom`], [`SnapshotError::Io`] or
    /// [`SnapshotError::Unwanted`]; what was there is there still.
    pub fn finish(
        mut self,
        machine: SavedMachine,
        is_wanted: impl FnOnce() -> bool,
    ) -> Result<Taken, SnapshotError> {
        let dir = self.dir.path().to_owned();
        let mut files = vec![open_synced(&dir.join(MEMORY))?];
        for disk in &mut self.disks {
            if let Some(name) = &disk.file {
                let path = dir.join(DISKS).join(name);
                let copy = open_synced(&path)?;
                disk.content = Some(digest::of_file(&copy, &path)?);
                files.push(copy);
            }
        }
        if files.len() > 1 {
            sync_dir(&dir.join(DISKS))?;
        }
        let created = SystemTime::now().duration_since(UNIX_EPOCH);
        let memory_bytes = self.memory.content.data;
        let state = MachineState {
            config: machine.config,
            cpuid: BytesList(machine.cpuid),
            vcpus: machine.vcpus,
            vm: machine.vm,
            devices: machine.devices,
            memory: self.memory,
            disks: self.disks,
            created_ns: created.map_or(0, |age| u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)),
            build: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned(),
            boot: MachineState::boot_steps(&machine.boot),
            nonce: machine.nonce,
        };
        let bytes = file::encode(&state);
        write_new(&dir.join(STATE), &bytes)?;

        let identities = files
            .iter()
            .map(identity)
            .collect::<Result<Vec<_>, _>>()
            .map_err(SnapshotError::io("read the times of files in", &dir))?;
        Stamp::settle(&identities);
        Stamp::new(file::checksum(&bytes), identities).put(&dir);
        let target = self.dir.target().to_owned();
        if !is_wanted() {
            return Err(SnapshotError::Unwanted { path: target });
        }
        self.dir.commit()?;
        Ok(Taken {
            snapshot: SnapshotRef {
                id: id_of(&bytes),
                dir: target,
            },
            memory_bytes,
            state_bytes: bytes.len() as u64,
        })
    }
}

/// Identity of the snapshot with this state file.
pub(super) fn id_of(state: &[u8]) -> SnapshotId {
    SnapshotId(Sha256::digest(state).into())
}

/// A file whose content is on disk. That takes longest: the machine does not
/// wait for it.
fn open_synced(path: &Path) -> Result<File, SnapshotError> {
    let file = File::open(path).map_err(SnapshotError::io("open", path))?;
    file.sync_all()
        .map_err(SnapshotError::io("write to the disk", path))?;
    Ok(file)
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), SnapshotError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(SnapshotError::io("make", path))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(SnapshotError::io("write", path))
}

/// The parent must be what it was when the changes began to count, and a
/// snapshot must not take the place of one that it needs.
fn check_parent(parent: &SnapshotRef, target: &Path) -> Result<(), SnapshotError> {
    let mut layer = Some(Snapshot::open(&parent.dir)?);
    if let Some(found) = &layer
        && found.id() != parent.id
    {
        return Err(SnapshotError::WrongParent {
            path: target.to_owned(),
            parent: parent.dir.clone(),
            expected: parent.id,
            found: found.id(),
        });
    }
    let mut layers = 0;
    while let Some(snapshot) = layer {
        layers += 1;
        if layers > MOST_LAYERS {
            // It could be taken, and never be opened again.
            return Err(SnapshotError::TooManyLayers {
                path: target.to_owned(),
                limit: MOST_LAYERS,
            });
        }
        if fs::canonicalize(snapshot.dir()).is_ok_and(|dir| dir == target) {
            return Err(SnapshotError::ReplacesParent {
                path: target.to_owned(),
            });
        }
        layer = snapshot.into_parent();
    }
    Ok(())
}

/// Beside each other they can be moved together.
fn relative_to(parent: &Path, target: &Path) -> String {
    match (parent.parent(), parent.file_name()) {
        (Some(beside), Some(name)) if Some(beside) == target.parent() => {
            format!("../{}", name.to_string_lossy())
        }
        _ => parent.to_string_lossy().into_owned(),
    }
}

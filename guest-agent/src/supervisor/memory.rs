//! Tells of processes that the kernel kills for want of memory, when it does.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::{Effect, Supervisor};
use crate::protocol::{EventKind, Name};

/// The `memory.events` of VPSs that run, watched. The kernel says at most
/// every 10 ms that one has changed.
#[derive(Debug)]
pub(super) struct MemoryWatch {
    inotify: OwnedFd,
    names: BTreeMap<i32, Name>,
}

impl MemoryWatch {
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Self {
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            names: BTreeMap::new(),
        })
    }

    fn add(&mut self, name: &Name, file: &Path) -> Result<(), Errno> {
        let watch = inotify::add_watch(&self.inotify, file, WatchFlags::MODIFY)?;
        self.names.insert(watch, name.clone());
        Ok(())
    }

    fn remove(&mut self, name: &Name) {
        self.names.retain(|watch, watched| {
            if watched == name {
                // It went with its file, else.
                let _ = inotify::remove_watch(&self.inotify, *watch);
            }
            watched != name
        });
    }

    /// The VPSs whose files have changed; each once. After an overflow: all.
    fn changed(&self) -> Vec<Name> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut names = Vec::new();
        while let Ok(event) = reader.next() {
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                return self.names.values().cloned().collect();
            }
            match self.names.get(&event.wd()) {
                Some(name) if !names.contains(name) => names.push(name.clone()),
                _ => {}
            }
        }
        names
    }
}

impl Supervisor {
    /// Becomes readable when [`Self::memory_changed`] is to be called.
    pub(crate) fn memory_watch(&self) -> Option<BorrowedFd<'_>> {
        self.memory.as_ref().map(|memory| memory.inotify.as_fd())
    }

    /// Looks at the VPSs whose memory the kernel has something to say of.
    pub(crate) fn memory_changed(&mut self) {
        let names = self.memory.as_ref().map(MemoryWatch::changed);
        for name in names.unwrap_or_default() {
            self.look_for_kills(&name);
        }
    }

    /// Begins to watch a VPS that has just been started.
    pub(super) fn watch_memory(&mut self, name: &Name) {
        let (Some(memory), Some(record)) = (&mut self.memory, self.records.get_mut(name)) else {
            return;
        };
        record.oom_kills = 0;
        let file = self.engine.memory_events(&record.vps);
        match memory.add(name, &file) {
            // A kernel that does not account for memory.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => crate::server::log(&format!("cannot watch {}: {e}", file.display())),
        }
    }

    /// Ends to watch a VPS that has ended, with a last look.
    pub(super) fn unwatch_memory(&mut self, name: &Name) {
        if let Some(memory) = &mut self.memory {
            memory.remove(name);
        }
        self.look_for_kills(name);
    }

    fn look_for_kills(&mut self, name: &Name) {
        let Some(record) = self.records.get_mut(name) else {
            return;
        };
        let kills = self.engine.oom_kills(&record.vps).unwrap_or(0);
        if kills > record.oom_kills {
            record.oom_kills = kills;
            let event = Effect::Event(name.clone(), EventKind::OutOfMemory);
            self.effects.push(event);
        }
    }
}

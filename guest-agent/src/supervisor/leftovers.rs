//! What an agent that was killed has left.

use std::fs;
use std::io;
use std::path::Path;

/// Kills and removes the cgroups that an agent that was killed has left.
pub(super) fn clear_cgroups(root: &Path, troubles: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(root) else {
        return;
    };
    for entry in entries.flatten() {
        // Known from the directory: asking for each file costs a system call.
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        // An empty cgroup has nobody to kill.
        let _ = fs::write(path.join("cgroup.kill"), "1");
        // They die soon, not at once; nothing else goes on at this time.
        let gone = (0..200).any(|_| {
            remove_cgroups(&path).is_ok() || {
                std::thread::sleep(std::time::Duration::from_millis(5));
                false
            }
        });
        if !gone {
            troubles.push(format!(
                "processes of an earlier agent in {} do not die",
                path.display()
            ));
        }
    }
}

/// Removes a cgroup and those below it, which must be empty of processes.
pub(crate) fn remove_cgroups(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_cgroups(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

//! How the lab's instances are, and ending them.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::error::Result;
use super::place::Place;
use super::shape::{Shape, instance_name};
use super::{SESSIONS_LOCK, START_LOCK, qemu};

/// How an instance is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Its name: `default` or `icount`.
    pub name: &'static str,
    /// QEMU's process; absent if it does not run, as are the following.
    pub pid: Option<u32>,
    /// Its size.
    pub shape: Option<Shape>,
    /// When it was started, in seconds since 1970.
    pub started_at: Option<u64>,
    /// When it was last used, in seconds since 1970.
    pub last_used: Option<u64>,
    /// Whether somebody uses it now.
    pub in_use: bool,
    /// The emulated host's console, a file.
    pub console: PathBuf,
}

/// How both instances are.
///
/// # Errors
/// A record cannot be read.
pub fn status() -> Result<Vec<Status>> {
    [false, true]
        .into_iter()
        .map(|icount| status_of(&Place::of(instance_name(icount))))
        .collect()
}

fn status_of(place: &Place) -> Result<Status> {
    let instance = place.instance()?;
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let in_use = instance.is_some() && place.try_lock(SESSIONS_LOCK, false)?.is_none();
    Ok(Status {
        name: place.name(),
        pid: instance.as_ref().map(|instance| instance.pid),
        shape: instance.as_ref().map(|instance| instance.shape),
        started_at: instance.as_ref().map(|instance| instance.started_at),
        last_used: instance
            .as_ref()
            .and_then(|_| place.last_used())
            .map(seconds),
        in_use,
        console: place.console(),
    })
}

/// Ends an instance, whoever uses it; true if one ran.
///
/// # Errors
/// QEMU cannot be ended.
pub fn stop(icount: bool) -> Result<bool> {
    let place = Place::of(instance_name(icount));
    if !place.dir().is_dir() {
        return Ok(false);
    }
    // Whoever is starting it is not waited for long: then QEMU is ended under their hands.
    let _start = place.try_lock(START_LOCK, false)?;
    let ran = place.alive();
    qemu::end(&place)?;
    place.clean();
    Ok(ran)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::INSTANCE;
    use super::super::place::Instance;
    use super::super::place::tests::{SHAPE, place};
    use super::*;

    #[test]
    fn an_instance_that_was_killed_is_not_running() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let instance = Instance::new(7, 8, "t".into(), SHAPE, dir.path().join("lab/default"));
        place.write(INSTANCE, &instance).unwrap();
        let dead = status_of(&place).unwrap();
        assert_eq!((dead.pid, dead.in_use), (None, false));

        let _qemu = place.lock("qemu.lock", false, Duration::ZERO, "x").unwrap();
        let _session = place
            .lock(SESSIONS_LOCK, true, Duration::ZERO, "x")
            .unwrap();
        place.touch();
        let alive = status_of(&place).unwrap();
        assert_eq!(
            (alive.pid, alive.in_use, alive.shape),
            (Some(7), true, Some(SHAPE))
        );
        assert!(alive.last_used >= Some(instance.started_at - 1));
        assert!(!serde_json::to_string(&alive).unwrap().contains("token"));
    }
}

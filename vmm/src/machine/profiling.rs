//! When a machine's processors are sampled: during its boot, or for as long as
//! somebody is connected to a socket.
//!
//! A client of the socket gets a profile of the time until it closes its
//! sending half, as one JSON object; a client that goes away gets nothing. One
//! is served at a time, and during a profile of the boot none is.

use std::fs;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::vcpu::{Profile, Sampler};

/// Between two samples of a processor.
pub const INTERVAL: Duration = Duration::from_millis(1);

/// How long a client may take to read its profile.
const WRITE_PATIENCE: Duration = Duration::from_secs(1);

/// The profile of a boot, which goes into a file.
#[derive(Debug)]
pub(super) struct BootProfile {
    path: PathBuf,
    sampler: Sampler,
}

impl BootProfile {
    pub(super) fn start(path: PathBuf, sampler: Sampler) -> Self {
        sampler.start();
        Self { path, sampler }
    }

    /// Writes it out. That this is impossible is no reason to end a guest.
    pub(super) fn finish(self) {
        if let Err(error) = write(&self.path, &self.sampler.finish()) {
            eprintln!("insula-vmm: cannot write {}: {error}", self.path.display());
        }
    }
}

fn write(path: &Path, profile: &Profile) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(&serde_json::to_vec(profile)?)
}

/// Says when the next sample is due, while samples are taken.
#[derive(Debug)]
pub(super) struct Ticker {
    sampler: Sampler,
    next: Instant,
}

impl Ticker {
    pub(super) fn new(sampler: Sampler) -> Self {
        Self {
            sampler,
            next: Instant::now(),
        }
    }

    /// How long to wait at most, if `left` is how long it would be otherwise.
    pub(super) fn bound(&self, left: Option<Duration>) -> Option<Duration> {
        if self.sampler.is_on() {
            Some(left.map_or(INTERVAL, |left| left.min(INTERVAL)))
        } else {
            left
        }
    }

    /// Whether a sample is due.
    pub(super) fn is_due(&mut self) -> bool {
        if !self.sampler.is_on() {
            return false;
        }
        let now = Instant::now();
        let due = now >= self.next;
        if due {
            self.next = now + INTERVAL;
        }
        due
    }
}

/// Serves profiles on a socket.
pub(super) struct ProfileServer {
    listener: UnixListener,
    sampler: Sampler,
    client: Option<UnixStream>,
}

impl ProfileServer {
    pub(super) fn bind(path: &Path, sampler: Sampler) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            sampler,
            client: None,
        })
    }

    fn accept(&mut self, ops: &mut EventOps) {
        while let Ok((stream, _)) = self.listener.accept() {
            // A second client finds its connection closed.
            if self.client.is_some() || !self.sampler.start() {
                continue;
            }
            if ops
                .add(Events::new(&stream, EventSet::READ_HANG_UP))
                .is_err()
            {
                self.sampler.finish();
                continue;
            }
            self.client = Some(stream);
        }
    }

    fn finish(&mut self, ops: &mut EventOps) {
        let Some(mut stream) = self.client.take() else {
            return;
        };
        let _ = ops.remove(Events::empty(&stream));
        let profile = self.sampler.finish();
        // A client that is gone, or does not read, has no use for it.
        let _ = stream
            .set_write_timeout(Some(WRITE_PATIENCE))
            .and_then(|()| stream.write_all(&serde_json::to_vec(&profile)?))
            .and_then(|()| stream.shutdown(Shutdown::Both));
    }
}

impl MutEventSubscriber for ProfileServer {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.listener.as_raw_fd() {
            self.accept(ops);
        } else {
            self.finish(ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.listener, EventSet::IN)) {
            eprintln!("insula-vmm: profiles cannot be served: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use event_manager::{EventManager, SubscriberOps};

    use super::*;

    #[test]
    fn a_client_gets_the_profile_of_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let sampler = Sampler::default();
        let server = ProfileServer::bind(&path, sampler.clone()).unwrap();
        let mut events = EventManager::<Box<dyn MutEventSubscriber>>::new().unwrap();
        events.add_subscriber(Box::new(server));

        let mut client = UnixStream::connect(&path).unwrap();
        events.run_with_timeout(100).unwrap();
        assert!(sampler.is_on());
        sampler.count(7);
        let mut second = UnixStream::connect(&path).unwrap();
        events.run_with_timeout(100).unwrap();
        assert_eq!(second.read(&mut [0; 8]).unwrap(), 0);

        client.shutdown(Shutdown::Write).unwrap();
        events.run_with_timeout(100).unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        let profile: Profile = serde_json::from_str(&text).unwrap();
        assert_eq!((profile.samples, profile.addresses[&7]), (1, 1));
        assert!(!sampler.is_on());
    }
}

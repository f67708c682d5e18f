//! `host-vps`: VPSs on the host's kernel, by an agent that serves on a socket.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guest_agent::client::{Client, Endpoint};

use super::partitioned::{Carrier, PartitionedModel};
use super::vps::Agent;
use super::{Conditions, Images, ModelError, ModelId};

/// How long the agent may take to end.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// VPSs on the host.
pub type HostVpsModel = PartitionedModel<HostAgent>;

/// What starts the agent on the host.
pub struct HostAgent {
    images: Images,
}

/// The agent's process and its files.
pub struct Service {
    // Dropped in this order.
    _process: Process,
    _directory: tempfile::TempDir,
}

/// The agent's process, ended when dropped.
struct Process {
    child: Child,
    endpoint: Endpoint,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Asked first: it ends what it made. Errors have nobody to go to.
        let asked = Client::connect(&self.endpoint).and_then(|mut client| client.power_off());
        let deadline = Instant::now() + END_PATIENCE;
        while asked.is_ok() && Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(2)),
                _ => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl HostVpsModel {
    /// With these images.
    pub fn new(images: Images) -> Self {
        Self::on(HostAgent { images })
    }
}

impl Carrier for HostAgent {
    type Up = Service;

    const MODEL: ModelId = ModelId::HostVps;

    fn conditions(&self) -> Conditions {
        Conditions {
            model: Self::MODEL,
            kernel: super::host_kernel(),
            limits: super::limits_in_words("memory, CPU and processes by cgroup"),
            image: self.images.in_words(),
            shares: "the host's kernel, one agent".into(),
        }
    }

    fn bring_up(&mut self) -> Result<(Agent, Service), ModelError> {
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| ModelError::host(doing, path, source)
        };
        let directory = tempfile::Builder::new()
            .prefix("insula-compare-")
            .tempdir()
            .map_err(failed("make a directory in", &std::env::temp_dir()))?;
        let socket = directory.path().join("agent.sock");
        let mut template = OsString::from(format!("{}=", self.images.template_name));
        template.push(&self.images.template);
        let log = directory.path().join("agent.log");
        let log_file = fs::File::create(&log).map_err(failed("create", &log))?;
        let mut command = Command::new(&self.images.agent);
        command
            .arg("service")
            .arg("--socket")
            .arg(&socket)
            .arg("--template")
            .arg(template)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            // Ctrl-C is for us, who end it when we have what we want.
            .process_group(0);
        // SAFETY: the closure runs between fork and exec and makes nothing but
        // one system call: no allocation, no lock.
        unsafe {
            // Nobody else knows of it: it is not to outlive us.
            command.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(
                    rustix::process::Signal::TERM,
                ))?;
                Ok(())
            });
        }
        let child = command
            .spawn()
            .map_err(failed("start", &self.images.agent))?;
        let endpoint = Endpoint::Unix(socket);
        let process = Process {
            child,
            endpoint: endpoint.clone(),
        };
        let agent = Agent::connect(Self::MODEL, endpoint, self.images.template_name.clone())
            .map_err(|error| {
                let said = fs::read_to_string(&log).unwrap_or_default();
                let last = said.lines().last().unwrap_or("nothing").to_owned();
                let source = std::io::Error::other(format!("{error}; the agent said: {last}"));
                ModelError::host("use", &self.images.agent, source)
            })?;
        let service = Service {
            _process: process,
            _directory: directory,
        };
        Ok((agent, service))
    }

    fn take_down(&mut self, service: Service) -> Result<(), ModelError> {
        drop(service);
        Ok(())
    }
}

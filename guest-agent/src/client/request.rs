//! Requests: one message out, one message back.

use std::time::{Duration, Instant};

use super::dial::Endpoint;
use super::error::ClientError;
use super::patience::stretched;
use super::session::{Events, Session};
use super::wire::Wire;
use crate::protocol::{
    Console, Exec, Frame, Hello, Info, MAJOR, MINOR, Message, Name, Run, Subscribe, VpsDestroy,
    VpsInfo, VpsNamed, VpsSpec, VpsStop,
};

/// How long an ordinary request may take.
fn patience() -> Duration {
    stretched(Duration::from_secs(30))
}

/// How long a connection and its hello may take.
const GREETING: Duration = Duration::from_secs(5);
/// Between attempts of [`Client::connect_until`].
const RETRY: Duration = Duration::from_millis(50);

/// A connection to an agent.
#[derive(Debug)]
pub struct Client {
    wire: Wire,
    peer: Hello,
    next_id: u32,
}

impl Client {
    /// Dials `endpoint` and exchanges hellos, within 5 seconds (or longer, see
    /// [`wait_longer`](super::wait_longer)).
    ///
    /// # Errors
    /// Nobody answers there, the token is refused, or the versions differ.
    pub fn connect(endpoint: &Endpoint) -> Result<Self, ClientError> {
        Self::connect_within(endpoint, stretched(GREETING))
    }

    /// As [`Client::connect`], with a time limit of one's own.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_within(endpoint: &Endpoint, within: Duration) -> Result<Self, ClientError> {
        let fd = endpoint.dial(Instant::now() + within)?;
        let mut wire = Wire::new(fd, endpoint.to_string());
        let hello = Hello {
            major: MAJOR,
            minor: MINOR,
            build: concat!("insula ", env!("CARGO_PKG_VERSION")).into(),
            secret: endpoint.secret().to_vec(),
        };
        wire.queue(&Frame::new(0, Message::Hello(hello)));
        let doing = "saying hello";
        match wire.wait(Some(within), doing)?.message {
            Message::Hello(peer) if peer.major == MAJOR => Ok(Self {
                wire,
                peer,
                next_id: 1,
            }),
            Message::Hello(peer) => Err(ClientError::Version {
                endpoint: endpoint.to_string(),
                theirs: peer.major,
                build: peer.build,
            }),
            Message::Error(failure) => Err(ClientError::Agent(failure)),
            other => Err(unexpected(&wire, &other, doing)),
        }
    }

    /// As [`Client::connect`], but tries again until `deadline` when nobody
    /// answers yet: for agents that say nothing when they are ready, such as
    /// a service that was just spawned. (A guest's agent calls its host.)
    ///
    /// # Errors
    /// The last attempt's failure. A refusal by an agent is final.
    pub fn connect_until(endpoint: &Endpoint, deadline: Instant) -> Result<Self, ClientError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let result = Self::connect_within(endpoint, left.min(stretched(GREETING)).max(RETRY));
            let again = matches!(
                result,
                Err(ClientError::Connect { .. }
                    | ClientError::Closed { .. }
                    | ClientError::Timeout { .. }
                    | ClientError::Io { .. })
            );
            if !again || left <= RETRY {
                return result;
            }
            std::thread::sleep(RETRY);
        }
    }

    /// The agent's hello.
    pub fn peer(&self) -> &Hello {
        &self.peer
    }

    /// Sends a request and waits up to 30 seconds for its answer.
    ///
    /// # Errors
    /// The agent's failure as [`ClientError::Agent`]; a lost or late connection.
    pub fn request(&mut self, message: Message) -> Result<Message, ClientError> {
        self.request_within(message, patience())
    }

    /// As [`Client::request`], with a time limit of one's own.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn request_within(
        &mut self,
        message: Message,
        within: Duration,
    ) -> Result<Message, ClientError> {
        let id = self.send(message);
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let frame = self.wire.wait(Some(left), "waiting for an answer")?;
            match frame.message {
                Message::Error(failure) if frame.id == id || frame.id == 0 => {
                    return Err(ClientError::Agent(failure));
                }
                message if frame.id == id => return Ok(message),
                // An answer to a request that was given up.
                _ => {}
            }
        }
    }

    fn send(&mut self, message: Message) -> u32 {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1).max(1);
        self.wire.queue(&Frame::new(id, message));
        id
    }

    fn vps_answer(&mut self, message: Message, within: Duration) -> Result<VpsInfo, ClientError> {
        match self.request_within(message, within)? {
            Message::Vps(info) => Ok(info),
            other => Err(unexpected(&self.wire, &other, "waiting for a VPS's state")),
        }
    }

    fn done_answer(&mut self, message: Message, within: Duration) -> Result<(), ClientError> {
        match self.request_within(message, within)? {
            Message::Done => Ok(()),
            other => Err(unexpected(&self.wire, &other, "waiting for a confirmation")),
        }
    }

    /// Asks whether the agent is there.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn ping(&mut self) -> Result<(), ClientError> {
        self.done_answer(Message::Ping, patience())
    }

    /// Facts about the agent and its kernel.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn info(&mut self) -> Result<Info, ClientError> {
        match self.request(Message::GetInfo)? {
            Message::Info(info) => Ok(info),
            other => Err(unexpected(
                &self.wire,
                &other,
                "waiting for the agent's facts",
            )),
        }
    }

    /// Defines a VPS.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn vps_create(&mut self, spec: VpsSpec) -> Result<VpsInfo, ClientError> {
        self.vps_answer(Message::VpsCreate(spec), patience())
    }

    /// Starts a VPS; returns when its init was executed.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn vps_start(&mut self, name: &Name) -> Result<VpsInfo, ClientError> {
        self.vps_answer(
            Message::VpsStart(VpsNamed { name: name.clone() }),
            patience(),
        )
    }

    /// Stops a VPS; returns when it is down. It is killed after `timeout`.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn vps_stop(&mut self, name: &Name, timeout: Duration) -> Result<VpsInfo, ClientError> {
        self.stop(name, timeout, false)
    }

    /// Stops a VPS as [`Client::vps_stop`] and starts it again.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn vps_restart(&mut self, name: &Name, timeout: Duration) -> Result<VpsInfo, ClientError> {
        self.stop(name, timeout, true)
    }

    fn stop(
        &mut self,
        name: &Name,
        timeout: Duration,
        restart: bool,
    ) -> Result<VpsInfo, ClientError> {
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let request = VpsStop {
            name: name.clone(),
            timeout_ms,
            restart,
        };
        self.vps_answer(
            Message::VpsStop(request),
            timeout.saturating_add(patience()),
        )
    }

    /// Destroys a VPS and its data; a running one only when `force`d.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn vps_destroy(&mut self, name: &Name, force: bool) -> Result<(), ClientError> {
        self.done_answer(
            Message::VpsDestroy(VpsDestroy {
                name: name.clone(),
                force,
            }),
            patience() * 2,
        )
    }

    /// How a VPS is.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn vps_get(&mut self, name: &Name) -> Result<VpsInfo, ClientError> {
        self.vps_answer(Message::VpsGet(VpsNamed { name: name.clone() }), patience())
    }

    /// How all VPSs are, by name.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn vps_list(&mut self) -> Result<Vec<VpsInfo>, ClientError> {
        match self.request(Message::VpsList)? {
            Message::VpsAll(all) => Ok(all),
            other => Err(unexpected(
                &self.wire,
                &other,
                "waiting for the list of VPSs",
            )),
        }
    }

    /// Holds all processes of VPSs and machine sessions and writes disks out,
    /// for a snapshot; see [`Message::Suspend`].
    ///
    /// # Errors
    /// As [`Client::request`]. Nothing is held then.
    pub fn suspend(&mut self) -> Result<(), ClientError> {
        self.done_answer(Message::Suspend, patience())
    }

    /// Ends a suspension.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn resume(&mut self) -> Result<(), ClientError> {
        self.done_answer(Message::Resume, patience())
    }

    /// Stops all VPSs and powers the guest off (a service just ends).
    /// Returns when the agent has agreed, or is gone already.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn power_off(&mut self) -> Result<(), ClientError> {
        match self.done_answer(Message::PowerOff, patience()) {
            Err(ClientError::Closed { .. }) => Ok(()),
            other => other,
        }
    }

    /// Runs a process; see [`Session`].
    pub fn exec(self, exec: Exec) -> Session {
        self.session(Message::Exec(exec))
    }

    /// Runs a VPS that lives as long as its init; see [`Session`].
    pub fn run(self, run: Run) -> Session {
        self.session(Message::Run(run))
    }

    /// Attaches to a VPS's console; see [`Session`].
    pub fn console(self, name: &Name) -> Session {
        self.session(Message::Console(Console { name: name.clone() }))
    }

    /// Follows events from number `since` on (0: all that the agent kept).
    pub fn subscribe(self, since: u64) -> Events {
        Events::new(self.session(Message::Subscribe(Subscribe { since })))
    }

    /// Sends `message` and makes the connection its session. What becomes of
    /// the request is seen in the session.
    pub(super) fn session(mut self, message: Message) -> Session {
        let id = self.send(message);
        Session::new(self.wire, id)
    }
}

pub(super) fn unexpected(wire: &Wire, message: &Message, doing: &'static str) -> ClientError {
    ClientError::Unexpected {
        endpoint: wire.endpoint().to_owned(),
        kind: message.kind(),
        doing,
    }
}

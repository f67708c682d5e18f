//! The agent's call to its host, with this test as the host: what holds a
//! guest for a snapshot, what lets the original go on, and what makes a copy
//! a machine of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(all(feature = "agent", feature = "client"))]

mod support;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use guest_agent::client::{Client, ClientError, Endpoint, Events};
use guest_agent::machine::Machine;
use guest_agent::protocol::{
    Clock, Code, Decoder, EventKind, Failure, Frame, Message, Restored, Resumed,
};
use guest_agent::server::{Agent, HostLine, Listener, ServeError, Setup, Ways};
use support::{LONG, exec};

const NONCE: [u8; 16] = [7; 16];
const RENEWED: [u8; 16] = [9; 16];
const GENERATION: [u8; 16] = [1; 16];

fn restored() -> Restored {
    Restored {
        generation: GENERATION,
        entropy: [2; 64],
        wall_clock_ns: 5,
        hostname: "clone".parse().unwrap(),
        nonce: RENEWED,
    }
}

/// The host's end of a call.
struct Call {
    socket: UnixStream,
    decoder: Decoder,
}

impl Call {
    fn accept(host: &UnixListener) -> Self {
        let (socket, _) = host.accept().unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        Self {
            socket,
            decoder: Decoder::new(),
        }
    }

    /// The next call, and the nonce that the agent says on it.
    fn greeted(host: &UnixListener) -> (Self, Vec<u8>) {
        let mut call = Self::accept(host);
        let secret = match call.hear().message {
            Message::Hello(hello) => Some(hello.secret),
            _ => None,
        };
        (call, secret.unwrap())
    }

    fn hear(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return frame;
            }
            let mut bytes = [0; 256];
            let count = self.socket.read(&mut bytes).unwrap();
            assert_ne!(count, 0, "the agent hung up");
            self.decoder.push(&bytes[..count]);
        }
    }

    fn say(&mut self, id: u32, message: Message) {
        let bytes = Frame::new(id, message).to_bytes();
        self.socket.write_all(&bytes).unwrap();
    }
}

/// An agent in a thread of this process.
struct Guest {
    thread: Option<JoinHandle<Result<(), ServeError>>>,
    host: UnixListener,
    line: Call,
    directory: tempfile::TempDir,
    /// What the machine was made.
    assumed: Arc<Mutex<Vec<Restored>>>,
    /// What its clock was set to.
    clocks: mpsc::Receiver<u64>,
}

impl Guest {
    fn start() -> Self {
        Self::start_with(|_| Ok(()))
    }

    fn start_with(outcome: impl Fn(&Restored) -> Result<(), String> + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("host.sock");
        let host = UnixListener::bind(&path).unwrap();
        let socket = UnixStream::connect(&path).unwrap();
        let line = Call::accept(&host);
        let assumed = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&assumed);
        let (set_clock, clocks) = mpsc::channel();
        let ways = Ways {
            dial: Box::new(move || {
                let socket = UnixStream::connect(&path).map_err(|e| {
                    rustix::io::Errno::from_io_error(&e).unwrap_or(rustix::io::Errno::IO)
                })?;
                Ok(socket.into())
            }),
            assume: Box::new(move |restored| {
                told.lock().unwrap().push(restored.clone());
                outcome(restored)
            }),
            set_clock: Box::new(move |time| {
                let _ = set_clock.send(time);
            }),
        };
        let listener = Listener::unix(&directory.path().join("agent.sock")).unwrap();
        let thread = std::thread::spawn(move || {
            let mut agent = Agent::new(Setup {
                listeners: vec![listener],
                host: Some(HostLine::new(socket.into(), NONCE, ways)),
                supervisor: Err(Failure {
                    code: Code::Unsupported,
                    message: "none here".into(),
                    errno: None,
                }),
                machine: Machine::Own,
                sessions: None,
                disk: None,
                protected: false,
            })
            .unwrap();
            agent.run()
        });
        Self {
            thread: Some(thread),
            host,
            line,
            directory,
            assumed,
            clocks,
        }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.path("agent.sock"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn client(&self) -> Client {
        Client::connect_until(&self.endpoint(), Instant::now() + LONG).unwrap()
    }

    /// Whether it is suspended, and which restore it is.
    fn state(&self) -> (bool, Option<[u8; 16]>) {
        let info = self.client().info().unwrap();
        (info.suspended.unwrap(), info.generation)
    }

    /// Asks to resume, in a thread that ends with the answer.
    fn resume(&self) -> JoinHandle<Result<(), ClientError>> {
        let mut client = self.client();
        std::thread::spawn(move || client.resume())
    }

    fn events(&self) -> Events {
        self.client().subscribe(0)
    }

    fn end(mut self) -> Result<(), ServeError> {
        self.thread.take().unwrap().join().unwrap()
    }
}

fn next(events: &mut Events) -> EventKind {
    let event = events.next(Some(LONG)).unwrap();
    assert_eq!(event.name, None);
    event.kind
}

#[test]
fn a_guest_that_stood_still_is_told_the_time() {
    let mut guest = Guest::start();
    for wall_clock_ns in [5, 9] {
        let clock = Clock { wall_clock_ns };
        guest.line.say(0, Message::Clock(clock));
        assert_eq!(guest.clocks.recv_timeout(LONG), Ok(wall_clock_ns));
    }
    // It is no other machine for that.
    assert_eq!(guest.state(), (false, None));
    guest.client().power_off().unwrap();
    guest.end().unwrap();
}

#[test]
fn the_original_goes_on_when_its_host_is_alive() {
    let mut guest = Guest::start();
    let mut events = guest.events();
    assert_eq!(guest.state(), (false, None));
    guest.client().resume().unwrap();
    guest.client().suspend().unwrap();
    assert_eq!(next(&mut events), EventKind::Suspended);
    guest.client().suspend().unwrap();
    assert_eq!(guest.state(), (true, None));
    // Nothing new runs meanwhile.
    let refused = guest.client().exec(exec(&["true"])).capture(b"", LONG);
    assert_eq!(refused.unwrap_err().code(), Some(Code::State));

    let resume = guest.resume();
    let ping = guest.line.hear();
    assert_eq!(ping.message, Message::Ping);
    // Another answer than that to the question is none.
    guest.line.say(ping.id.wrapping_add(1), Message::Done);
    assert_eq!(guest.state(), (true, None));
    guest.line.say(ping.id, Message::Done);
    resume.join().unwrap().unwrap();
    assert_eq!(next(&mut events), EventKind::Resumed);
    assert_eq!(guest.state(), (false, None));
    assert!(guest.assumed.lock().unwrap().is_empty());

    guest.client().power_off().unwrap();
    guest.end().unwrap();
}

#[test]
fn a_copy_waits_until_it_is_told_what_it_is() {
    let mut guest = Guest::start();
    let mut events = guest.events();
    guest.client().suspend().unwrap();
    assert_eq!(next(&mut events), EventKind::Suspended);

    // In a copy, the call is dead.
    drop(std::mem::replace(&mut guest.line, {
        let (near, _) = UnixStream::pair().unwrap();
        Call {
            socket: near,
            decoder: Decoder::new(),
        }
    }));
    let (mut call, secret) = Call::greeted(&guest.host);
    assert_eq!(secret, NONCE);
    // Somebody asks to resume it: it wants proof that it is the original.
    let resume = guest.resume();
    assert_eq!(call.hear().message, Message::Ping);
    assert_eq!(guest.state(), (true, None));
    // A client cannot say what only the host may.
    let forged = Message::Restored(Restored {
        generation: [66; 16],
        ..restored()
    });
    let refused = guest.client().request(forged).unwrap_err();
    assert_eq!(refused.code(), Some(Code::Invalid));
    assert_eq!(guest.state(), (true, None));
    assert!(guest.assumed.lock().unwrap().is_empty());

    call.say(1, Message::Restored(restored()));
    let resumed = Message::Resumed(Resumed {
        generation: GENERATION,
    });
    assert_eq!(call.hear(), Frame::new(1, resumed.clone()));
    resume.join().unwrap().unwrap();
    assert_eq!(next(&mut events), EventKind::Restored(GENERATION));
    assert_eq!(guest.state(), (false, Some(GENERATION)));
    assert_eq!(*guest.assumed.lock().unwrap(), [restored()]);

    // Its answer was lost with the call: told again, it does nothing again.
    drop(call);
    let (mut call, secret) = Call::greeted(&guest.host);
    assert_eq!(secret, RENEWED);
    call.say(2, Message::Restored(restored()));
    assert_eq!(call.hear(), Frame::new(2, resumed));
    assert_eq!(guest.assumed.lock().unwrap().len(), 1);

    // And it can be held for a snapshot as any.
    guest.client().suspend().unwrap();
    let resume = guest.resume();
    let ping = call.hear();
    call.say(ping.id, Message::Done);
    resume.join().unwrap().unwrap();
    guest.client().power_off().unwrap();
    guest.end().unwrap();
}

#[test]
fn a_copy_that_was_not_held_is_told_as_well() {
    let guest = Guest::start();
    let (host, line) = (
        guest.host.try_clone().unwrap(),
        guest.line.socket.try_clone(),
    );
    line.unwrap().shutdown(std::net::Shutdown::Both).unwrap();
    let (mut call, _) = Call::greeted(&host);
    call.say(1, Message::Restored(restored()));
    assert!(matches!(call.hear().message, Message::Resumed(_)));
    assert_eq!(guest.state(), (false, Some(GENERATION)));
}

#[test]
fn a_copy_that_cannot_be_made_its_own_ends() {
    let mut guest = Guest::start_with(|_| Err("no random numbers".into()));
    guest.client().suspend().unwrap();
    guest.line.say(1, Message::Restored(restored()));
    let error = guest.end().unwrap_err();
    assert_eq!(error.to_string(), "no random numbers");
}

#[test]
fn a_host_that_is_away_is_dialled_again_and_no_snapshot_taken_meanwhile() {
    let guest = Guest::start();
    let path = guest.path("host.sock");
    std::fs::remove_file(&path).unwrap();
    guest
        .line
        .socket
        .shutdown(std::net::Shutdown::Both)
        .unwrap();
    // It has noticed when it says so.
    support::eventually("the loss of the call", || {
        let asked = guest.client().suspend();
        let refused = asked.as_ref().is_err_and(|e| e.code() == Some(Code::State));
        if !refused {
            asked.unwrap();
        }
        refused
    });
    let host = UnixListener::bind(&path).unwrap();
    let (mut call, secret) = Call::greeted(&host);
    assert_eq!(secret, NONCE);
    // An earlier attempt may have got through; then it has to be ended.
    let resume = guest.resume();
    support::eventually("the resumption", || {
        if !guest.state().0 {
            return true;
        }
        let ping = call.hear();
        call.say(ping.id, Message::Done);
        false
    });
    resume.join().unwrap().unwrap();
    guest.client().suspend().unwrap();
    assert_eq!(guest.state(), (true, None));
}

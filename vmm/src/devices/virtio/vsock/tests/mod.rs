//! A guest for tests, and what happens to it.

mod conversation;
mod flow;
mod hostile;
mod random;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::credit::RECEIVE_BUFFER;
use super::header::{
    HEADER_LEN, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
use super::*;
use crate::devices::virtio::Interrupt;
use crate::devices::virtio::testing::{Buffer, DriverQueue, memory, readable, writable};
use crate::memory::GuestMemory;

const CID: u64 = 3;
/// Ports that tests use: of the guest, of a Unix socket, of a port in-process.
const GUEST_PORT: u32 = 2000;
const SOCKET_PORT: u32 = 52;
const PORT: u32 = 101;
/// The guest's receive buffers, one page for each entry of the queue.
const RECEIVE_PAGES: u64 = 2 << 20;
/// Where the guest writes what it sends.
const TRANSMIT_PAGE: u64 = 0x40000;

#[derive(Debug, PartialEq)]
enum Heard {
    Connect(HostConnection),
    Data(HostConnection, Vec<u8>),
    Close(HostConnection),
}

/// A port that answers data by the same in upper case, and "bye" by closing.
struct Echo(Arc<Mutex<Vec<Heard>>>);

impl HostPort for Echo {
    fn on_connect(&mut self, connection: HostConnection, out: &mut Outbox) {
        self.0.lock().unwrap().push(Heard::Connect(connection));
        out.send(b"welcome");
    }

    fn on_data(&mut self, connection: HostConnection, data: &[u8], out: &mut Outbox) {
        self.0
            .lock()
            .unwrap()
            .push(Heard::Data(connection, data.to_vec()));
        out.send(&data.to_ascii_uppercase());
        if data == b"bye" {
            out.close();
        }
    }

    fn on_close(&mut self, connection: HostConnection) {
        self.0.lock().unwrap().push(Heard::Close(connection));
    }
}

/// A device and the driver of a guest without any sense of its own.
struct Guest {
    vsock: Vsock,
    memory: GuestMemory,
    receive: DriverQueue,
    transmit: DriverQueue,
    event: DriverQueue,
    interrupt: Arc<Interrupt>,
    heard: Arc<Mutex<Vec<Heard>>>,
    dir: TempDir,
    /// `buf_alloc` and `fwd_cnt` of what the guest sends.
    credit: (u32, u32),
}

impl Guest {
    fn new() -> Self {
        let mut guest = Self::without_buffers();
        guest.give_buffers(QUEUE_SIZE);
        guest
    }

    fn without_buffers() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let echo: Box<dyn HostPort> = Box::new(Echo(heard.clone()));
        let config = VsockConfig {
            guest_cid: CID,
            path: dir.path().join("v"),
            ports: BTreeMap::from([(PORT, echo)]),
        };
        let mut vsock = Vsock::new(config).unwrap();
        vsock.handle().listen().unwrap();
        let memory = memory();
        let receive = DriverQueue::new(&memory, 0x10000, QUEUE_SIZE);
        let transmit = DriverQueue::new(&memory, 0x14000, QUEUE_SIZE);
        let event = DriverQueue::new(&memory, 0x18000, EVENT_QUEUE_SIZE);
        let interrupt = Arc::new(Interrupt::new().unwrap());
        let queues = [&receive, &transmit, &event].map(|driver| driver.queue(true));
        let activation = Activation {
            memory: memory.clone(),
            features: vsock.features(),
            queues: queues.into(),
            interrupt: interrupt.clone(),
        };
        vsock.activate(activation).unwrap();
        let credit = (1 << 16, 0);
        Self {
            vsock,
            memory,
            receive,
            transmit,
            event,
            interrupt,
            heard,
            dir,
            credit,
        }
    }

    fn give_buffers(&mut self, count: u16) {
        for _ in 0..count {
            self.give_buffer();
        }
    }

    fn give_buffer(&mut self) {
        // Chains of one descriptor: the page belongs to the descriptor.
        let probe = self.receive.offer(&[writable(RECEIVE_PAGES, 4096)]);
        let page = RECEIVE_PAGES + u64::from(probe) * 4096;
        self.receive.write_descriptor(probe, page, 4096, 2, 0);
    }

    /// Lets the device do what the event loop would.
    fn turn(&self) {
        let mut core = lock(&self.vsock.core);
        core.muxer.on_host_events();
        core.pump();
    }

    fn send_header(&mut self, header: &Header, data: &[u8]) {
        let bytes = [&header.to_bytes(), data].concat();
        self.memory
            .write_slice(&bytes, GuestAddress(TRANSMIT_PAGE))
            .unwrap();
        self.offer(&[readable(TRANSMIT_PAGE, bytes.len() as u32)]);
    }

    fn offer(&mut self, buffers: &[Buffer]) {
        self.transmit.offer(buffers);
        self.turn();
        while self.transmit.take_used().is_some() {}
    }

    fn header(&self, op: Op, (guest_port, host_port): (u32, u32), len: usize) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            len: len as u32,
            kind: TYPE_STREAM,
            op: op.code(),
            flags: 0,
            buf_alloc: self.credit.0,
            fwd_cnt: self.credit.1,
        }
    }

    fn send(&mut self, op: Op, ports: (u32, u32), data: &[u8]) {
        self.send_header(&self.header(op, ports, data.len()), data);
    }

    fn shutdown(&mut self, ports: (u32, u32), flags: u32) {
        self.send_header(
            &Header {
                flags,
                ..self.header(Op::Shutdown, ports, 0)
            },
            &[],
        );
    }

    /// The next packet that the device has for the guest by now.
    fn take(&mut self) -> Option<(Header, Vec<u8>)> {
        self.turn();
        let (head, len) = self.receive.take_used()?;
        let mut bytes = vec![0; len as usize];
        let page = RECEIVE_PAGES + u64::from(head) * 4096;
        self.memory
            .read_slice(&mut bytes, GuestAddress(page))
            .unwrap();
        self.give_buffer();
        let data = bytes.split_off(HEADER_LEN);
        let header = Header::from_bytes(&bytes.try_into().unwrap());
        assert_eq!((header.dst_cid, header.len as usize), (CID, data.len()));
        Some((header, data))
    }

    /// The next packet, which has to be of this kind.
    fn expect(&mut self, op: Op) -> (Header, Vec<u8>) {
        let (header, data) = self.take().unwrap_or_else(|| panic!("no {op:?}"));
        assert_eq!(Op::from_code(header.op), Some(op), "{header:?}");
        (header, data)
    }

    fn expect_nothing(&mut self) {
        assert_eq!(self.take(), None);
    }

    /// Connects to a Unix socket of the host; returns the socket and the ports.
    fn connect_to_socket(&mut self, guest_port: u32) -> (UnixStream, (u32, u32)) {
        let path = self.dir.path().join(format!("v_{SOCKET_PORT}"));
        let listener = UnixListener::bind(&path).unwrap();
        let ports = (guest_port, SOCKET_PORT);
        self.send(Op::Request, ports, &[]);
        let (response, _) = self.expect(Op::Response);
        assert_eq!(
            (response.src_port, response.dst_port),
            (SOCKET_PORT, guest_port)
        );
        assert_eq!(response.buf_alloc, RECEIVE_BUFFER);
        std::fs::remove_file(path).unwrap();
        (patient(listener.accept().unwrap().0), ports)
    }

    /// A client of the host that says `greeting`.
    fn client(&self, greeting: &[u8]) -> UnixStream {
        let mut client = patient(UnixStream::connect(self.dir.path().join("v")).unwrap());
        client.write_all(greeting).unwrap();
        client
    }

    fn connect_from_client(&mut self) -> (UnixStream, (u32, u32)) {
        let mut client = self.client(format!("CONNECT {GUEST_PORT}\n").as_bytes());
        let (request, _) = self.expect(Op::Request);
        assert_eq!(request.dst_port, GUEST_PORT);
        let ports = (GUEST_PORT, request.src_port);
        self.send(Op::Response, ports, &[]);
        let expected = format!("OK {}\n", request.src_port);
        assert_eq!(read(&mut client, expected.len()), expected.as_bytes());
        (client, ports)
    }

    fn connections(&self) -> usize {
        lock(&self.vsock.core).muxer.connections()
    }
}

/// Fails a test instead of hanging it.
fn patient(stream: UnixStream) -> UnixStream {
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream
}

fn read(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn read_to_end(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

trait PopFront {
    fn pop_front_heard(&mut self) -> Option<Heard>;
}

impl PopFront for Vec<Heard> {
    fn pop_front_heard(&mut self) -> Option<Heard> {
        (!self.is_empty()).then(|| self.remove(0))
    }
}

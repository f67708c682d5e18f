//! Connections as they are meant to be.

use virtio_queue::QueueT;

use super::*;

#[test]
fn guest_talks_to_a_socket_of_the_host() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.connect_to_socket(GUEST_PORT);
    guest.send(Op::Data, ports, b"hello");
    assert_eq!(read(&mut host, 5), b"hello");
    host.write_all(b"welcome").unwrap();
    let (_, data) = guest.expect(Op::Data);
    assert_eq!(data, b"welcome");
    // The guest closes, and hears that it is over.
    guest.shutdown(ports, SHUTDOWN_BOTH);
    guest.expect(Op::Reset);
    assert_eq!(read_to_end(&mut host), b"");
    assert_eq!(guest.connections(), 0);
    guest.expect_nothing();
    assert!(guest.interrupt.event().read().is_ok());
}

#[test]
fn client_of_the_host_talks_to_the_guest() {
    let mut guest = Guest::new();
    let (mut client, ports) = guest.connect_from_client();
    client.write_all(b"ping").unwrap();
    assert_eq!(guest.expect(Op::Data).1, b"ping");
    guest.send(Op::Data, ports, b"pong");
    assert_eq!(read(&mut client, 4), b"pong");
    // The client goes: all that it said comes first.
    client.write_all(b"last words").unwrap();
    drop(client);
    assert_eq!(guest.expect(Op::Data).1, b"last words");
    assert_eq!(guest.expect(Op::Shutdown).0.flags, SHUTDOWN_BOTH);
    guest.send(Op::Reset, ports, &[]);
    assert_eq!(guest.connections(), 0);
    guest.expect_nothing();
}

#[test]
fn what_a_client_says_at_once_is_not_lost() {
    let mut guest = Guest::new();
    let mut client = guest.client(b"CONNECT 7\nearly");
    client.shutdown(Shutdown::Write).unwrap();
    let (request, _) = guest.expect(Op::Request);
    guest.send(Op::Response, (7, request.src_port), &[]);
    assert_eq!(guest.expect(Op::Data).1, b"early");
    assert_eq!(guest.expect(Op::Shutdown).0.flags, SHUTDOWN_SEND);
    guest.send(Op::Data, (7, request.src_port), b"late");
    guest.shutdown((7, request.src_port), SHUTDOWN_BOTH);
    let expected = format!("OK {}\nlate", request.src_port);
    assert_eq!(read_to_end(&mut client), expected.as_bytes());
}

#[test]
fn directions_close_one_by_one() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.connect_to_socket(GUEST_PORT);
    guest.send(Op::Data, ports, b"end");
    guest.shutdown(ports, SHUTDOWN_SEND);
    assert_eq!(read_to_end(&mut host), b"end");
    host.write_all(b"answer").unwrap();
    assert_eq!(guest.expect(Op::Data).1, b"answer");
    host.shutdown(Shutdown::Write).unwrap();
    assert_ne!(guest.expect(Op::Shutdown).0.flags & SHUTDOWN_SEND, 0);
    guest.shutdown(ports, SHUTDOWN_RECEIVE);
    let packets: Vec<_> = std::iter::from_fn(|| guest.take()).collect();
    assert!(
        packets
            .iter()
            .any(|(header, _)| header.op == Op::Reset.code())
    );
    assert_eq!(guest.connections(), 0);

    // The guest does not receive: who writes hears of it.
    let (mut host, ports) = guest.connect_to_socket(GUEST_PORT + 1);
    guest.shutdown(ports, SHUTDOWN_RECEIVE);
    assert_eq!(
        host.write(b"x").unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
    guest.send(Op::Data, ports, b"still sending");
    assert_eq!(read(&mut host, 13), b"still sending");
    // Data after the end of data is a lie.
    guest.shutdown(ports, SHUTDOWN_SEND);
    guest.expect(Op::Reset);
}

#[test]
fn data_to_a_host_that_left_are_thrown_away() {
    let mut guest = Guest::new();
    let (host, ports) = guest.connect_to_socket(GUEST_PORT);
    drop(host);
    assert_eq!(guest.expect(Op::Shutdown).0.flags, SHUTDOWN_BOTH);
    guest.send(Op::Data, ports, b"crossed on the way");
    guest.expect_nothing();
    guest.shutdown(ports, SHUTDOWN_BOTH);
    guest.expect(Op::Reset);
    assert_eq!(guest.connections(), 0);
}

#[test]
fn ports_in_this_process_hear_and_answer() {
    let mut guest = Guest::new();
    let ports = (GUEST_PORT, PORT);
    guest.send(Op::Request, ports, &[]);
    guest.expect(Op::Response);
    assert_eq!(guest.expect(Op::Data).1, b"welcome");
    guest.send(Op::Data, ports, b"hello");
    assert_eq!(guest.expect(Op::Data).1, b"HELLO");
    let Some(Heard::Connect(id)) = guest.heard.lock().unwrap().pop_front_heard() else {
        panic!("no connection");
    };
    let handle = guest.vsock.handle();
    assert!(handle.send(id, b"unasked"));
    assert_eq!(guest.expect(Op::Data).1, b"unasked");
    assert!(!handle.send(id, &vec![0; PORT_BACKLOG_MAX + 1]));
    guest.shutdown(ports, SHUTDOWN_BOTH);
    guest.expect(Op::Reset);
    assert!(!handle.send(id, b"too late"));
    let heard = std::mem::take(&mut *guest.heard.lock().unwrap());
    assert_eq!(
        heard,
        [Heard::Data(id, b"hello".to_vec()), Heard::Close(id)]
    );

    // The port ends it: it hears no more of it.
    guest.send(Op::Request, ports, &[]);
    guest.send(Op::Data, ports, b"bye");
    guest.expect(Op::Response);
    let mut bytes = Vec::new();
    let flags = loop {
        let (header, data) = guest.take().unwrap();
        bytes.extend(data);
        if header.op == Op::Shutdown.code() {
            break header.flags;
        }
    };
    assert_eq!(
        (bytes.as_slice(), flags),
        (b"welcomeBYE".as_slice(), SHUTDOWN_BOTH)
    );
    guest.send(Op::Reset, ports, &[]);
    assert_eq!(guest.heard.lock().unwrap().len(), 2);
    assert_eq!(guest.connections(), 0);

    // The guest resets the device in the middle.
    guest.send(Op::Request, ports, &[]);
    guest.vsock.reset();
    assert!(matches!(
        guest.heard.lock().unwrap().last(),
        Some(Heard::Close(_))
    ));
}

#[test]
fn the_guest_hears_that_its_connections_are_gone() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.connect_to_socket(GUEST_PORT);
    guest.vsock.handle().reset_transport();
    assert_eq!(read_to_end(&mut host), b"");
    assert_eq!(guest.event.take_used(), None);
    guest.event.offer(&[writable(0x50000, 4)]);
    guest
        .memory
        .write_obj(u32::MAX, GuestAddress(0x50000))
        .unwrap();
    guest.turn();
    assert_eq!(guest.event.take_used(), Some((0, 4)));
    assert_eq!(
        guest.memory.read_obj::<u32>(GuestAddress(0x50000)).unwrap(),
        0
    );
    guest.send(Op::Data, ports, b"x");
    guest.expect(Op::Reset);
}

#[test]
fn data_may_come_in_many_descriptors() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.connect_to_socket(GUEST_PORT);
    let header = guest.header(Op::Data, ports, 9).to_bytes();
    guest
        .memory
        .write_slice(&header, GuestAddress(TRANSMIT_PAGE))
        .unwrap();
    guest
        .memory
        .write_slice(b"abcdefghi", GuestAddress(0x50000))
        .unwrap();
    guest.offer(&[
        readable(TRANSMIT_PAGE, 20),
        readable(TRANSMIT_PAGE + 20, 24),
        readable(0x50000, 3),
        readable(0x50003, 3),
        readable(0x50006, 100),
    ]);
    assert_eq!(read(&mut host, 9), b"abcdefghi");
}

#[test]
fn the_socket_is_private_and_goes_with_the_device() {
    let guest = Guest::new();
    let path = guest.dir.path().join("v");
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let again = VsockConfig {
        guest_cid: CID,
        path: path.clone(),
        ports: BTreeMap::new(),
    };
    let again = Vsock::new(again).unwrap();
    assert!(matches!(
        again.handle().listen(),
        Err(VsockError::Listen(ListenError::Listen { .. }))
    ));
    // It is not its own.
    drop(again);
    assert!(path.exists());
    drop(guest.vsock);
    assert!(!path.exists());
    let long = VsockConfig {
        guest_cid: CID,
        path: "x".repeat(97).into(),
        ports: BTreeMap::new(),
    };
    let error = Vsock::new(long).unwrap_err();
    assert!(matches!(
        error,
        VsockError::Listen(ListenError::PathTooLong { .. })
    ));
    for guest_cid in [0, 1, 2, u64::from(u32::MAX), u64::MAX] {
        let config = VsockConfig {
            guest_cid,
            path: path.clone(),
            ports: BTreeMap::new(),
        };
        assert!(matches!(Vsock::new(config), Err(VsockError::Cid(_))));
    }
}

#[test]
fn a_real_event_loop_drives_the_device() {
    use event_manager::{EventManager, SubscriberOps};

    let mut guest = Guest::new();
    let mut events = EventManager::<VsockSubscriber>::new().unwrap();
    events.add_subscriber(guest.vsock.subscriber());
    let mut client = guest.client(b"CONNECT 5\n");
    let deadline = Instant::now() + Duration::from_secs(10);
    let request = loop {
        events.run_with_timeout(100).unwrap();
        // Not `take`, which would do the loop's work.
        if let Some((head, _)) = guest.receive.take_used() {
            let page = RECEIVE_PAGES + u64::from(head) * 4096;
            let mut bytes = [0; HEADER_LEN];
            guest
                .memory
                .read_slice(&mut bytes, GuestAddress(page))
                .unwrap();
            break Header::from_bytes(&bytes);
        }
        assert!(Instant::now() < deadline);
    };
    let response = guest
        .header(Op::Response, (5, request.src_port), 0)
        .to_bytes();
    guest
        .memory
        .write_slice(&response, GuestAddress(TRANSMIT_PAGE))
        .unwrap();
    guest
        .transmit
        .offer(&[readable(TRANSMIT_PAGE, HEADER_LEN as u32)]);
    guest.vsock.queue_events()[1].write(1).unwrap();
    events.run_with_timeout(1000).unwrap();
    assert_eq!(read(&mut client, 3), b"OK ");
}

#[test]
fn a_paused_device_leaves_the_queues_alone() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.connect_to_socket(GUEST_PORT);
    guest.vsock.pause();
    let before = guest.vsock.progress().unwrap();
    host.write_all(b"early").unwrap();
    guest.send(Op::Data, ports, b"late");
    assert_eq!(guest.take(), None);
    assert_eq!(guest.vsock.progress().unwrap(), before);
    guest.vsock.resume().unwrap();
    assert_eq!(read(&mut host, 4), b"late");
    let (_, data) = guest.expect(Op::Data);
    assert_eq!(data, b"early");
}

#[test]
fn a_restored_device_has_no_connections_and_says_so() {
    let mut guest = Guest::new();
    let (_host, ports) = guest.connect_to_socket(GUEST_PORT);
    guest.vsock.pause();
    let state = guest.vsock.save();
    let progress = guest.vsock.progress().unwrap();
    let mut queues = [&guest.receive, &guest.transmit, &guest.event].map(|d| d.queue(true));
    for (queue, progress) in queues.iter_mut().zip(&progress) {
        queue.set_next_avail(progress.next_avail);
        queue.set_next_used(progress.next_used);
    }
    guest.event.offer(&[writable(0x50000, 4)]);

    let dir = tempfile::tempdir().unwrap();
    let config = VsockConfig {
        guest_cid: CID + 1,
        path: dir.path().join("v"),
        ports: BTreeMap::new(),
    };
    let mut copy = Vsock::new(config).unwrap();
    copy.pause();
    copy.restore(&state).unwrap();
    copy.activate(Activation {
        memory: guest.memory.clone(),
        features: copy.features(),
        queues: queues.into(),
        interrupt: guest.interrupt.clone(),
    })
    .unwrap();
    assert_eq!(guest.event.take_used(), None);
    copy.resume().unwrap();
    assert_eq!(guest.event.take_used(), Some((0, 4)));
    assert_eq!(copy.config(), (CID + 1).to_le_bytes());

    // What the guest still says on a connection of before is answered so.
    guest.vsock = copy;
    let mut header = guest.header(Op::Data, ports, 1);
    header.src_cid = CID + 1;
    guest.send_header(&header, b"x");
    guest.turn();
    let (head, _) = guest.receive.take_used().unwrap();
    let mut bytes = [0; HEADER_LEN];
    let page = RECEIVE_PAGES + u64::from(head) * 4096;
    guest
        .memory
        .read_slice(&mut bytes, GuestAddress(page))
        .unwrap();
    let answer = Header::from_bytes(&bytes);
    assert_eq!(Op::from_code(answer.op), Some(Op::Reset));
    assert_eq!(answer.dst_cid, CID + 1);
}

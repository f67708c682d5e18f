//! Room, turns and limits.

use super::*;

#[test]
fn the_guests_room_is_respected() {
    let mut guest = Guest::new();
    guest.credit.0 = 10;
    let (mut host, ports) = guest.connect_to_socket(GUEST_PORT);
    host.write_all(b"0123456789abcdefghij").unwrap();
    assert_eq!(guest.expect(Op::Data).1, b"0123456789");
    guest.expect(Op::CreditRequest);
    guest.expect_nothing();
    guest.credit.1 = 4;
    guest.send(Op::CreditUpdate, ports, &[]);
    assert_eq!(guest.expect(Op::Data).1, b"abcd");
    guest.expect(Op::CreditRequest);
    guest.credit = (100, 14);
    guest.send(Op::CreditUpdate, ports, &[]);
    assert_eq!(guest.expect(Op::Data).1, b"efghij");
    guest.expect_nothing();
}

#[test]
fn our_room_is_told_and_enforced() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.connect_to_socket(GUEST_PORT);
    guest.send(Op::CreditRequest, ports, &[]);
    let (update, _) = guest.expect(Op::CreditUpdate);
    assert_eq!((update.buf_alloc, update.fwd_cnt), (RECEIVE_BUFFER, 0));
    // The host's side does not read: the socket takes some, we keep the rest.
    let chunk = vec![7; 4000];
    let (mut sent, mut forwarded) = (0_u32, 0);
    while sent - forwarded + 4000 <= RECEIVE_BUFFER {
        guest.send(Op::Data, ports, &chunk);
        sent += 4000;
        while let Some((update, _)) = guest.take() {
            assert_eq!(Op::from_code(update.op), Some(Op::CreditUpdate));
            forwarded = update.fwd_cnt;
        }
    }
    // It reads: all comes in order, and there is room again.
    let mut seen = 0;
    while seen < sent as usize {
        seen += read(&mut host, 4000.min(sent as usize - seen)).len();
        guest.turn();
    }
    let mut last = forwarded;
    while let Some((update, _)) = guest.take() {
        last = update.fwd_cnt;
    }
    assert!(sent - last <= RECEIVE_BUFFER / 2);
    // It stops again, and the guest goes on without room.
    for _ in 0..=(RECEIVE_BUFFER * 4 / 4000) {
        guest.send(Op::Data, ports, &chunk);
    }
    let packets: Vec<_> = std::iter::from_fn(|| guest.take()).collect();
    assert!(
        packets
            .iter()
            .any(|(header, _)| header.op == Op::Reset.code())
    );
    assert_eq!(guest.connections(), 0);
}

#[test]
fn what_a_guest_said_before_it_left_arrives_late_but_whole() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.connect_to_socket(GUEST_PORT);
    let chunk = vec![9; 4000];
    for _ in 0..60 {
        guest.send(Op::Data, ports, &chunk);
    }
    guest.shutdown(ports, SHUTDOWN_BOTH);
    // Not confirmed before it has gone out; the guest runs out of patience.
    assert!(std::iter::from_fn(|| guest.take()).all(|(h, _)| h.op != Op::Reset.code()));
    guest.send(Op::Reset, ports, &[]);
    // The key is free while the old connection drains.
    guest.send(Op::Data, ports, b"x");
    guest.expect(Op::Reset);
    let mut seen = 0;
    while seen < 240_000 {
        seen += read(&mut host, 4000).len();
        guest.turn();
    }
    assert_eq!(read_to_end(&mut host), b"");
    assert_eq!(guest.connections(), 0);
}

#[test]
fn without_room_for_answers_the_guest_has_to_wait() {
    let mut guest = Guest::without_buffers();
    let header = guest.header(Op::Data, (1, 99), 0);
    guest
        .memory
        .write_slice(&header.to_bytes(), GuestAddress(TRANSMIT_PAGE))
        .unwrap();
    let mut taken = 0;
    for _ in 0..4 {
        for _ in 0..QUEUE_SIZE / 2 {
            guest
                .transmit
                .offer(&[readable(TRANSMIT_PAGE, HEADER_LEN as u32)]);
        }
        guest.turn();
        let before = taken;
        while guest.transmit.take_used().is_some() {
            taken += 1;
        }
        if taken == before {
            break;
        }
    }
    assert_eq!(taken, 64);
    guest.give_buffers(QUEUE_SIZE);
    assert_eq!(std::iter::from_fn(|| guest.take()).count(), 64 + 32);
}

#[test]
fn a_guest_that_takes_nothing_costs_nothing() {
    let mut guest = Guest::without_buffers();
    for _ in 0..100 {
        guest.send(Op::Request, (1, PORT), &[]);
        assert_eq!(guest.connections(), 1);
        guest.send(Op::Reset, (1, PORT), &[]);
        lock(&guest.vsock.core).muxer.check();
    }
    assert_eq!(guest.connections(), 0);
}

#[test]
fn everyone_has_a_turn() {
    let mut guest = Guest::new();
    let mut hosts: Vec<_> = (0..4).map(|port| guest.connect_to_socket(port)).collect();
    for (host, _) in &mut hosts {
        host.write_all(&vec![1; 20_000]).unwrap();
    }
    let first: Vec<_> = (0..8).map(|_| guest.expect(Op::Data).0.dst_port).collect();
    for port in 0..4 {
        assert_eq!(first.iter().filter(|&&seen| seen == port).count(), 2);
    }
}

#[test]
fn a_thousand_connections_each_way_and_not_more() {
    let mut guest = Guest::new();
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        clients.push(guest.connect_from_client().0);
    }
    let waiting = guest.client(b"CONNECT 1\n");
    guest.expect_nothing();
    assert_eq!(guest.connections(), CONNECTIONS_MAX);
    for port in 0..CONNECTIONS_MAX as u32 {
        guest.send(Op::Request, (port, PORT), &[]);
        guest.expect(Op::Response);
        guest.expect(Op::Data);
    }
    guest.send(Op::Request, (5000, PORT), &[]);
    guest.expect(Op::Reset);
    assert_eq!(guest.connections(), CONNECTIONS_MAX * 2);
    // A client goes, the next one is let in.
    drop(clients.pop());
    let (shutdown, _) = guest.expect(Op::Shutdown);
    guest.send(Op::Reset, (shutdown.dst_port, shutdown.src_port), &[]);
    guest.expect(Op::Request);
    drop(waiting);
}

#[test]
fn connections_that_linger_make_room_for_new_ones() {
    let mut guest = Guest::new();
    for port in 0..CONNECTIONS_MAX as u32 {
        guest.send(Op::Request, (port, PORT), &[]);
        guest.send(Op::Data, (port, PORT), b"bye");
        while guest.take().is_some() {}
    }
    assert_eq!(guest.connections(), CONNECTIONS_MAX);
    guest.send(Op::Request, (5000, PORT), &[]);
    while guest.take().is_some() {}
    guest.send(Op::Request, (5000, PORT), &[]);
    guest.expect(Op::Response);
}

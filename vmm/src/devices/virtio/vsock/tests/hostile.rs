//! Packets and greetings that should not be.

use super::*;

#[test]
fn clients_that_make_no_sense_or_leave_are_dropped() {
    let mut guest = Guest::new();
    for greeting in [
        b"HELLO\n".as_slice(),
        b"CONNECT 99999999999\n",
        &[b' '; 100],
    ] {
        let mut client = guest.client(greeting);
        guest.turn();
        // Some of what it said is unread, so it may be told rudely.
        let mut bytes = Vec::new();
        let _ = client.read_to_end(&mut bytes);
        assert_eq!(bytes, b"");
    }
    drop(guest.client(b""));
    drop(guest.client(b"CONN"));
    guest
        .client(b"CONNECT 1")
        .shutdown(Shutdown::Write)
        .unwrap();
    guest.turn();
    assert_eq!(guest.connections(), 0);
    guest.expect_nothing();
    // One that leaves while the guest is being asked.
    let client = guest.client(b"CONNECT 1\n");
    let (request, _) = guest.expect(Op::Request);
    drop(client);
    assert_eq!(guest.expect(Op::Reset).0.src_port, request.src_port);
    assert_eq!(guest.connections(), 0);
    // And one that the guest refuses.
    let mut client = guest.client(b"CONNECT 1\n");
    let (request, _) = guest.expect(Op::Request);
    guest.send(Op::Reset, (1, request.src_port), &[]);
    assert_eq!(read_to_end(&mut client), b"");
}

#[test]
fn nobody_there_is_a_reset() {
    let mut guest = Guest::new();
    guest.send(Op::Request, (GUEST_PORT, 99), &[]);
    let (reset, _) = guest.expect(Op::Reset);
    assert_eq!((reset.src_port, reset.dst_port), (99, GUEST_PORT));
    for op in [
        Op::Response,
        Op::Data,
        Op::Shutdown,
        Op::CreditUpdate,
        Op::CreditRequest,
    ] {
        guest.send(op, (GUEST_PORT, 99), &[]);
        guest.expect(Op::Reset);
    }
    guest.send(Op::Reset, (GUEST_PORT, 99), &[]);
    guest.expect_nothing();
}

#[test]
fn packets_that_are_not_for_us_are_refused() {
    let mut guest = Guest::new();
    let header = guest.header(Op::Request, (GUEST_PORT, PORT), 0);
    // Of another type, to another context, of an unknown kind.
    guest.send_header(&Header { kind: 2, ..header }, &[]);
    assert_eq!(guest.expect(Op::Reset).0.kind, 2);
    guest.send_header(
        &Header {
            dst_cid: 77,
            ..header
        },
        &[],
    );
    assert_eq!(guest.expect(Op::Reset).0.src_cid, 77);
    for op in [0, 8, u16::MAX] {
        guest.send_header(&Header { op, ..header }, &[]);
        guest.expect(Op::Reset);
    }
    // In another's name: no answer at all.
    guest.send_header(
        &Header {
            src_cid: 4,
            ..header
        },
        &[],
    );
    guest.expect_nothing();
    assert!(guest.heard.lock().unwrap().is_empty());
}

#[test]
fn flags_and_operations_out_of_place_end_the_connection() {
    for case in 0..6 {
        let mut guest = Guest::new();
        let (mut host, ports) = guest.connect_to_socket(GUEST_PORT);
        let data = guest.header(Op::Data, ports, 1);
        match case {
            0 => guest.send_header(&Header { flags: 1, ..data }, b"x"),
            1 => guest.shutdown(ports, 4),
            2 => guest.send(Op::Request, ports, &[]),
            3 => guest.send(Op::Response, ports, &[]),
            // More data announced than there is.
            4 => guest.send_header(&Header { len: 2, ..data }, b"x"),
            _ => {
                // More bytes forwarded than were ever sent.
                guest.credit.1 = 1;
                guest.send(Op::CreditUpdate, ports, &[]);
            }
        }
        guest.expect(Op::Reset);
        assert_eq!(read_to_end(&mut host), b"", "{case}");
        assert_eq!(guest.connections(), 0, "{case}");
        assert!(!guest.interrupt.is_reset_needed());
    }
}

#[test]
fn broken_messages_stop_the_device() {
    type Break = fn(&mut Guest);
    let cases: [(&str, Break); 6] = [
        ("short header", |guest| {
            guest.offer(&[readable(TRANSMIT_PAGE, 43)]);
        }),
        ("header outside of memory", |guest| {
            guest.offer(&[readable(1 << 40, 44)]);
        }),
        ("writable header", |guest| {
            guest.offer(&[writable(TRANSMIT_PAGE, 44)]);
        }),
        ("head outside of the table", |guest| {
            guest.transmit.offer_head(QUEUE_SIZE);
            guest.turn();
        }),
        ("receive buffer without room", |guest| {
            guest.receive.offer(&[writable(RECEIVE_PAGES, 44)]);
            guest.send(Op::Data, (1, 99), &[]);
        }),
        ("receive buffer outside of memory", |guest| {
            guest.receive.offer(&[writable((1 << 20) - 100, 200)]);
            guest.send(Op::Data, (1, 99), &[]);
        }),
    ];
    for (name, case) in cases {
        let mut guest = Guest::without_buffers();
        case(&mut guest);
        assert!(guest.interrupt.is_reset_needed(), "{name}");
        assert_eq!(guest.connections(), 0);
    }
}

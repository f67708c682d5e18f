//! Stories that nobody would tell.

use proptest::prelude::*;

use super::*;

/// One thing that a guest or a host may do in a random story.
#[derive(Debug, Clone)]
enum Step {
    /// A packet with fields that are often right.
    Packet {
        op: u16,
        ports: (u32, u32),
        flags: u32,
        credit: (u32, u32),
        len: u32,
        data: usize,
    },
    /// Bytes that are not even meant to be a header.
    Noise(Vec<u8>),
    ClientConnects(u8),
    ClientWrites(usize),
    ClientLeaves,
    HostReads,
    GuestTakes,
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let port = || {
        prop_oneof![
            Just(PORT),
            Just(SOCKET_PORT),
            0_u32..3,
            (1_u32 << 30)..(1 << 30) + 4
        ]
    };
    let small = || prop_oneof![4 => 0_u32..100, 1 => any::<u32>()];
    let packet = (
        0_u16..9,
        (0_u32..3, port()),
        prop_oneof![6 => Just(0), 3 => 0_u32..4, 1 => small()],
    )
        .prop_flat_map(move |(op, ports, flags)| {
            let credit = (
                prop_oneof![Just(4096), small()],
                prop_oneof![3 => Just(0), 1 => small()],
            );
            (
                Just((op, ports, flags)),
                credit,
                0_usize..5000,
                prop_oneof![9 => Just(None), 1 => small().prop_map(Some)],
            )
        })
        .prop_map(|((op, ports, flags), credit, data, lie)| Step::Packet {
            op,
            ports,
            flags,
            credit,
            len: lie.unwrap_or(data as u32),
            data,
        });
    prop_oneof![
        20 => packet,
        1 => proptest::collection::vec(any::<u8>(), 44..200).prop_map(Step::Noise),
        3 => (0_u8..3).prop_map(Step::ClientConnects),
        4 => (0_usize..3000).prop_map(Step::ClientWrites),
        1 => Just(Step::ClientLeaves),
        3 => Just(Step::HostReads),
        10 => Just(Step::GuestTakes),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_story_is_safe(steps in proptest::collection::vec(step(), 1..120)) {
        let mut guest = Guest::new();
        let listener = UnixListener::bind(guest.dir.path().join(format!("v_{SOCKET_PORT}"))).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut sockets: Vec<UnixStream> = Vec::new();
        for step in steps {
            match step {
                Step::Packet { op, ports, flags, credit, len, data } => {
                    guest.credit = credit;
                    let header = guest.header(Op::Data, ports, 0);
                    guest.send_header(&Header { len, op, flags, ..header }, &vec![5; data]);
                }
                Step::Noise(bytes) => {
                    guest.memory.write_slice(&bytes, GuestAddress(TRANSMIT_PAGE)).unwrap();
                    guest.offer(&[readable(TRANSMIT_PAGE, bytes.len() as u32)]);
                }
                Step::ClientConnects(port) => {
                    let client = guest.client(format!("CONNECT {port}\n").as_bytes());
                    client.set_nonblocking(true).unwrap();
                    sockets.push(client);
                }
                Step::ClientWrites(len) => {
                    for socket in &mut sockets {
                        let _ = socket.write(&vec![6; len]);
                    }
                }
                Step::ClientLeaves => {
                    sockets.pop();
                }
                Step::HostReads => {
                    while let Ok((socket, _)) = listener.accept() {
                        socket.set_nonblocking(true).unwrap();
                        sockets.push(socket);
                    }
                    for socket in &mut sockets {
                        let _ = socket.read(&mut [0; 3000]);
                    }
                }
                Step::GuestTakes => {
                    for _ in 0..4 {
                        guest.take();
                    }
                }
                Step::Reset => lock(&guest.vsock.core).muxer.reset(),
            }
            lock(&guest.vsock.core).muxer.check();
        }
        prop_assert!(!guest.interrupt.is_reset_needed());
        // Whatever happened, the device still works.
        while guest.take().is_some() {}
        guest.credit = (1 << 16, 0);
        guest.send(Op::Request, (9999, PORT), &[]);
        guest.expect(Op::Response);
    }

    #[test]
    fn headers_survive_the_wire(bytes in any::<[u8; 32]>(), tail in any::<[u8; 12]>()) {
        let bytes: [u8; HEADER_LEN] = [bytes.as_slice(), &tail].concat().try_into().unwrap();
        prop_assert_eq!(Header::from_bytes(&bytes).to_bytes(), bytes);
    }

    #[test]
    fn any_descriptors_are_safe(
        table in proptest::collection::vec((any::<u8>(), 0_u32..9000, 0_u16..8, 0_u16..10), 8),
        heads in proptest::collection::vec(0_u16..10, 1..8),
        noise in proptest::collection::vec(any::<u8>(), 512),
        into_receive in any::<bool>(),
    ) {
        let mut guest = Guest::without_buffers();
        for page in 4..8_u64 {
            guest.memory.write_slice(&noise, GuestAddress(page << 16)).unwrap();
        }
        let header = guest.header(Op::Request, (1, PORT), 0).to_bytes();
        guest.memory.write_slice(&header, GuestAddress(TRANSMIT_PAGE)).unwrap();
        if into_receive {
            guest.send(Op::Request, (1, PORT), &[]);
        }
        let driver = if into_receive { &mut guest.receive } else { &mut guest.transmit };
        for (index, (page, len, flags, next)) in table.into_iter().enumerate() {
            driver.write_descriptor(index as u16, u64::from(page) << 16, len, flags, next);
        }
        for head in heads {
            driver.offer_head(head);
        }
        guest.turn();
    }
}

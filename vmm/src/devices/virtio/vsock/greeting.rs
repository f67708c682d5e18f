//! What a client on the host says first: `CONNECT <port>\n`, and what it
//! hears when the guest has accepted: `OK <host port>\n`.

use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, recv};

/// The longest line: the largest port, and a bit to spare.
const LINE_MAX: usize = 32;

/// What has come of a client's first line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// Not all of it is there yet.
    Incomplete,
    /// The client wants this port of the guest's.
    Connect(u32),
    /// It said something else, or went away.
    Invalid,
}

/// Reads the line and not a byte more: what follows is for the guest.
pub(super) fn read(stream: &UnixStream) -> Greeting {
    let mut bytes = [0; LINE_MAX];
    // Looks before it takes, so that an incomplete line stays with the kernel.
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let seen = match recv(stream, &mut bytes, flags) {
        Ok((seen, _)) => seen,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Greeting::Incomplete,
        Err(_) => return Greeting::Invalid,
    };
    let greeting = parse(&bytes[..seen]);
    match (
        &greeting,
        bytes[..seen].iter().position(|&byte| byte == b'\n'),
    ) {
        (Greeting::Connect(_), Some(end)) => {
            match recv(stream, &mut bytes[..=end], RecvFlags::DONTWAIT) {
                Ok((taken, _)) if taken == end + 1 => greeting,
                _ => Greeting::Invalid,
            }
        }
        // The end of the stream, in the middle of the line or before.
        _ if seen == 0 => Greeting::Invalid,
        _ => greeting,
    }
}

/// Judges the first bytes of a client's.
fn parse(bytes: &[u8]) -> Greeting {
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
        return if bytes.len() < LINE_MAX {
            Greeting::Incomplete
        } else {
            Greeting::Invalid
        };
    };
    let port = std::str::from_utf8(&bytes[..end])
        .ok()
        .and_then(|line| line.trim_end().strip_prefix("CONNECT "))
        .and_then(|port| port.parse().ok());
    port.map_or(Greeting::Invalid, Greeting::Connect)
}

/// The answer when the guest has accepted.
pub(super) fn accepted(host_port: u32) -> String {
    format!("OK {host_port}\n")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn judges_lines() {
        assert_eq!(parse(b""), Greeting::Incomplete);
        assert_eq!(parse(b"CONNECT 100"), Greeting::Incomplete);
        assert_eq!(parse(b"CONNECT 100\n"), Greeting::Connect(100));
        assert_eq!(
            parse(b"CONNECT 4294967295\r\nmore"),
            Greeting::Connect(u32::MAX)
        );
        let invalid: [&[u8]; 8] = [
            b"\n",
            b"CONNECT\n",
            b"CONNECT \n",
            b"CONNECT -1\n",
            b"CONNECT 4294967296\n",
            b"connect 1\n",
            b"CONNECT \xff\n",
            &[b'x'; LINE_MAX],
        ];
        for line in invalid {
            assert_eq!(parse(line), Greeting::Invalid, "{line:?}");
        }
    }

    #[test]
    fn takes_the_line_and_leaves_what_follows() {
        let (mut client, mut server) = UnixStream::pair().unwrap();
        assert_eq!(read(&server), Greeting::Incomplete);
        client.write_all(b"CONN").unwrap();
        assert_eq!(read(&server), Greeting::Incomplete);
        client.write_all(b"ECT 7\nhello").unwrap();
        assert_eq!(read(&server), Greeting::Connect(7));
        let mut rest = [0; 5];
        server.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"hello");
        drop(client);
        assert_eq!(read(&server), Greeting::Invalid);
    }
}

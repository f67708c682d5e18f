//! What anything in a guest may say on the agent's call to its host, cut into
//! any pieces: frames and messages, in a guest that booted and in one that was
//! restored.
//!
//! Run it with `cargo +nightly fuzz run agent_call` in `vmm`.

#![no_main]

use std::sync::Arc;

use guest_agent::protocol::{Decoder, Frame, FrameError, Hello, MAJOR, Message, Restored};
use libfuzzer_sys::fuzz_target;
use vmm::config::BootNonce;
use vmm::machine::agent_link::AgentLink;
use vmm::machine::boot_timer::BootTimer;

const NONCE: [u8; 16] = [7; 16];
const GENERATION: [u8; 16] = [1; 16];

fn link(is_restored: bool) -> AgentLink {
    let timer = Arc::new(BootTimer::default());
    let nonce = BootNonce::new(NONCE);
    if is_restored {
        let restored = Restored {
            generation: GENERATION,
            entropy: [2; 64],
            wall_clock_ns: 0,
            hostname: "clone".parse().expect("a name"),
            nonce: [9; 16],
        };
        AgentLink::for_restore(nonce, restored, timer).expect("a link")
    } else {
        AgentLink::new(nonce, timer).expect("a link")
    }
}

/// What the decoder makes of the stream, whole: each message encodes to what
/// decodes to the same.
fn decode(stream: &[u8]) {
    let mut decoder = Decoder::new();
    decoder.push(stream);
    loop {
        let before = decoder.pending();
        match decoder.next_frame() {
            Ok(None) | Err((_, FrameError::Length(_))) => return,
            Ok(Some(frame)) => {
                let mut again = Decoder::new();
                again.push(&frame.to_bytes());
                let decoded = again.next_frame().expect("our own bytes");
                assert_eq!(decoded.as_ref(), Some(&frame));
            }
            Err(_) => {}
        }
        assert!(decoder.pending() < before);
    }
}

fuzz_target!(|input: (bool, bool, u8, Vec<u8>)| {
    let (is_restored, is_agent, piece, stream) = input;
    decode(&stream);
    let link = link(is_restored);
    let mut call = link.call();
    if is_agent {
        // As the agent itself, gone wrong.
        let hello = Hello {
            major: MAJOR,
            minor: 0,
            build: String::new(),
            secret: NONCE.to_vec(),
        };
        let hello = Frame::new(0, Message::Hello(hello)).to_bytes();
        call.receive(&hello).expect("a good hello");
    }
    for bytes in stream.chunks(usize::from(piece).max(1)) {
        match call.receive(bytes) {
            Ok(answer) => decode(&answer),
            Err(_) => break,
        }
        if call.is_over() {
            break;
        }
    }
    if !is_agent {
        // Only who has the nonce changes anything.
        let says_nonce = stream.windows(NONCE.len()).any(|bytes| bytes == NONCE);
        assert!(says_nonce || (!link.is_ready() && link.goodbye().is_none()));
    }
});

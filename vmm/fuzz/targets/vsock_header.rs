//! A vsock packet's header: any bytes are one, and the same bytes again.
//!
//! Run it with `cargo +nightly fuzz run vsock_header` in `vmm`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::devices::virtio::vsock::header::{HEADER_LEN, Header, Op};

fuzz_target!(|bytes: [u8; HEADER_LEN]| {
    let header = Header::from_bytes(&bytes);
    assert_eq!(header.to_bytes(), bytes);
    if let Some(op) = Op::from_code(header.op) {
        assert_eq!(op.code(), header.op);
    }
});

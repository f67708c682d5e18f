//! A request to a block device: whatever it says, what is read or written lies
//! on the disk.
//!
//! Run it with `cargo +nightly fuzz run block_request` in `vmm`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
use vmm::devices::virtio::block::request::{Operation, Status, finish, parse};
use vmm::devices::virtio::chain::Message;
use vmm::memory::GuestMemory;

const MEMORY: usize = 1 << 16;
const CAPACITY: u64 = 1 << 20;

fuzz_target!(|input: (bool, Vec<u8>, Vec<(bool, u64, u32)>)| {
    let (read_only, content, buffers) = input;
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("guest memory");
    let length = content.len().min(MEMORY);
    memory
        .write_slice(&content[..length], GuestAddress(0))
        .expect("it fits");
    let mut message = Message::default();
    for (is_writable, address, length) in buffers.into_iter().take(256) {
        let part = if is_writable {
            &mut message.writable
        } else {
            &mut message.readable
        };
        part.push(GuestAddress(address), length);
    }
    match parse(&message, &memory, CAPACITY, read_only) {
        Ok(Operation::Read { offset, len }) => assert!(offset + len <= CAPACITY),
        Ok(Operation::Write { offset, len }) => {
            assert!(!read_only && offset + len <= CAPACITY);
        }
        _ => {}
    }
    let _ = finish(&message, &memory, Status::Ok);
});

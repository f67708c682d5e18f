//! A driver that writes anything to memory and to the registers of a block or
//! vsock device. The memory is where its queues are, so that vsock packets of
//! any content arrive too.
//!
//! Run it with `cargo +nightly fuzz run virtio_mmio` in `vmm`.

#![no_main]

use std::collections::BTreeMap;

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
use vmm::devices::bus::BusDevice;
use vmm::devices::virtio::VirtioDevice;
use vmm::devices::virtio::block::Block;
use vmm::devices::virtio::mmio::Transport;
use vmm::devices::virtio::vsock::{Vsock, VsockConfig};
use vmm::memory::GuestMemory;

const MEMORY: usize = 1 << 18;

// Registers, by virtio 1.2, 4.2.2.
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const STATUS: u64 = 0x70;
const QUEUE_ADDRESSES: [u64; 3] = [0x80, 0x90, 0xa0];

fuzz_target!(|input: (bool, Vec<u8>, Vec<(u16, u32, bool)>)| {
    let (is_block, content, accesses) = input;
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("guest memory");
    let length = content.len().min(MEMORY);
    memory
        .write_slice(&content[..length], GuestAddress(0))
        .expect("it fits");

    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let mut events = EventManager::<Box<dyn MutEventSubscriber>>::new().expect("an event loop");
    let device: Box<dyn VirtioDevice> = if is_block {
        let path = dir.path().join("image");
        std::fs::write(&path, [0; 4096]).expect("room for a disk");
        Box::new(Block::new(&path, false, "fuzz").expect("a disk"))
    } else {
        let config = VsockConfig {
            guest_cid: 3,
            path: dir.path().join("vsock"),
            ports: BTreeMap::new(),
        };
        let vsock = Vsock::new(config).expect("a device");
        events.add_subscriber(Box::new(vsock.subscriber()));
        Box::new(vsock)
    };

    let features = device.features();
    let sizes = device.queue_sizes().to_vec();
    let mut transport = Transport::new(memory, device).expect("a transport");
    let mut set = |offset: u64, value: u32| transport.write(offset, &value.to_le_bytes());
    for status in [0, 1, 3] {
        set(STATUS, status);
    }
    for (half, value) in [(0, features as u32), (1, (features >> 32) as u32)] {
        set(DRIVER_FEATURES_SEL, half);
        set(DRIVER_FEATURES, value);
    }
    set(STATUS, 11);
    for (queue, size) in (0..).zip(&sizes) {
        set(QUEUE_SEL, queue);
        // Small, so that the input reaches all parts of it.
        set(QUEUE_NUM, u32::from(*size).min(16));
        for (part, register) in (0..).zip(QUEUE_ADDRESSES) {
            set(register, queue << 12 | part << 10);
        }
        set(QUEUE_READY, 1);
    }
    set(STATUS, 15);

    for (offset, value, is_write) in accesses.into_iter().take(256) {
        let offset = u64::from(offset) % (Transport::SIZE - 3);
        if is_write {
            transport.write(offset, &value.to_le_bytes());
        } else {
            transport.read(offset, &mut [0; 4]);
        }
        let _ = events.run_with_timeout(0);
    }
    transport.reset();
});

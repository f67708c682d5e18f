use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tempfile::NamedTempFile;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::virtio::Interrupt;
use crate::devices::virtio::chain::Message;
use crate::devices::virtio::testing::{Buffer, DriverQueue, memory, readable, writable};
use crate::memory::GuestMemory;

const SECTORS: u64 = 64;
const RINGS: u64 = 0x10000;
const HEADER: u64 = 0x20000;
const DATA: u64 = 0x21000;
const STATUS: u64 = 0x30000;
/// What the status byte is before the device writes it.
const UNTOUCHED: u8 = 0xee;

/// A disk image in which each byte is its sector's number.
fn image() -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    for sector in 0..SECTORS {
        file.write_all(&[sector as u8; SECTOR_SIZE as usize])
            .unwrap();
    }
    file
}

struct Fixture {
    memory: GuestMemory,
    driver: DriverQueue,
    server: Server,
    interrupt: Arc<Interrupt>,
    image: NamedTempFile,
}

impl Fixture {
    fn new(read_only: bool, event_idx: bool) -> Self {
        let image = image();
        let memory = memory();
        let driver = DriverQueue::new(&memory, RINGS, QUEUE_SIZE);
        let ring = Ring::new(driver.queue(event_idx), memory.clone());
        let disk = Arc::new(Disk::open(image.path(), read_only, "serial").unwrap());
        let interrupt = Arc::new(Interrupt::new().unwrap());
        let server = Server::new(disk, ring, interrupt.clone(), false);
        Self {
            memory,
            driver,
            server,
            interrupt,
            image,
        }
    }

    fn header(&self, kind: u32, sector: u64) {
        self.memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        self.memory
            .write_obj(sector, GuestAddress(HEADER + 8))
            .unwrap();
        self.memory
            .write_obj(UNTOUCHED, GuestAddress(STATUS))
            .unwrap();
    }

    fn status(&self) -> u8 {
        self.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    fn drain(&mut self) -> Result<(), worker::QueueError> {
        self.server.drain(&AtomicBool::new(false))
    }

    /// Serves one request with `data` between header and status; returns the
    /// status and the used length.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        self.header(kind, sector);
        let mut buffers = vec![readable(HEADER, 16)];
        buffers.extend(data);
        buffers.push(writable(STATUS, 1));
        let head = self.driver.offer(&buffers);
        self.drain().unwrap();
        let (used, len) = self.driver.take_used().unwrap();
        assert_eq!(used, head);
        (self.status(), len)
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }
}

#[test]
fn reads_into_scattered_buffers() {
    let mut fixture = Fixture::new(true, false);
    let buffers = [
        writable(DATA, 100),
        writable(DATA + 0x1000, 0),
        writable(DATA + 0x2000, 924),
    ];
    assert_eq!(fixture.request(VIRTIO_BLK_T_IN, 3, &buffers), (0, 1025));
    assert_eq!(fixture.bytes(DATA, 100), [3; 100]);
    assert_eq!(fixture.bytes(DATA + 0x2000, 412), [3; 412]);
    assert_eq!(fixture.bytes(DATA + 0x2000 + 412, 512), [4; 512]);
}

#[test]
fn writes_and_reads_back() {
    let mut fixture = Fixture::new(false, false);
    fixture
        .memory
        .write_slice(&[0xab; 1024], GuestAddress(DATA))
        .unwrap();
    let buffers = [readable(DATA, 1), readable(DATA + 1, 1023)];
    assert_eq!(
        fixture.request(VIRTIO_BLK_T_OUT, SECTORS - 2, &buffers),
        (0, 1)
    );
    let mut written = [0; 1024];
    fixture
        .image
        .as_file()
        .read_exact_at(&mut written, (SECTORS - 2) * SECTOR_SIZE)
        .unwrap();
    assert_eq!(written, [0xab; 1024]);
    assert_eq!(fixture.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (0, 1));
}

#[test]
fn tells_its_serial() {
    let mut fixture = Fixture::new(true, false);
    assert_eq!(
        fixture.request(VIRTIO_BLK_T_GET_ID, 0, &[writable(DATA, 20)]),
        (0, 21)
    );
    assert_eq!(
        &fixture.bytes(DATA, 20),
        b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    assert_eq!(
        fixture.request(VIRTIO_BLK_T_GET_ID, 0, &[writable(DATA, 19)]),
        (1, 1)
    );
}

#[test]
fn rejects_what_it_cannot_do() {
    let mut fixture = Fixture::new(false, false);
    let sector = [writable(DATA, 512)];
    for start in [SECTORS, u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1] {
        assert_eq!(
            fixture.request(VIRTIO_BLK_T_IN, start, &sector),
            (1, 1),
            "{start}"
        );
        let data = [readable(DATA, 512)];
        assert_eq!(
            fixture.request(VIRTIO_BLK_T_OUT, start, &data),
            (1, 1),
            "{start}"
        );
    }
    assert_eq!(
        fixture.request(VIRTIO_BLK_T_IN, SECTORS - 1, &[writable(DATA, 1024)]),
        (1, 1)
    );
    assert_eq!(
        fixture.request(VIRTIO_BLK_T_IN, 0, &[writable(DATA, 511)]),
        (1, 1)
    );
    // Buffers outside of memory, at its end, and past the end of addresses.
    for address in [1 << 40, 0xf_ff00, u64::MAX - 100] {
        assert_eq!(
            fixture.request(VIRTIO_BLK_T_IN, 0, &[writable(address, 512)]),
            (1, 1)
        );
        assert_eq!(
            fixture.request(VIRTIO_BLK_T_OUT, 0, &[readable(address, 512)]),
            (1, 1)
        );
    }
    assert_eq!(
        fixture.request(VIRTIO_BLK_T_DISCARD, 0, &[readable(DATA, 16)]),
        (2, 1)
    );
    assert_eq!(fixture.request(0xffff_ffff, 0, &[]), (2, 1));
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let mut fixture = Fixture::new(true, false);
    assert_eq!(
        fixture.request(VIRTIO_BLK_T_OUT, 0, &[readable(DATA, 512)]),
        (1, 1)
    );
    assert_eq!(fixture.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (0, 1));
}

#[test]
fn a_file_that_shrank_is_an_error() {
    let mut fixture = Fixture::new(false, false);
    fixture.image.as_file().set_len(512).unwrap();
    assert_eq!(
        fixture.request(VIRTIO_BLK_T_IN, 0, &[writable(DATA, 1024)]),
        (1, 1)
    );
    assert_eq!(
        fixture.request(VIRTIO_BLK_T_IN, 0, &[writable(DATA, 512)]),
        (0, 513)
    );
}

#[test]
fn descriptors_may_cut_a_request_anywhere() {
    let mut fixture = Fixture::new(true, false);
    fixture.header(VIRTIO_BLK_T_IN, 7);
    // A header in three parts, data and status in one.
    let status = DATA + 512;
    fixture
        .memory
        .write_obj(UNTOUCHED, GuestAddress(status))
        .unwrap();
    fixture.driver.offer(&[
        readable(HEADER, 3),
        readable(HEADER + 3, 12),
        readable(HEADER + 15, 1),
        writable(DATA, 513),
    ]);
    fixture.drain().unwrap();
    assert_eq!(fixture.driver.take_used().unwrap().1, 513);
    assert_eq!(
        fixture.bytes(DATA, 513),
        [[7; 512].as_slice(), &[0]].concat()
    );
}

#[test]
fn broken_chains_stop_the_device() {
    let next = VRING_DESC_F_NEXT as u16;
    let indirect = VRING_DESC_F_INDIRECT as u16;
    type Break = fn(&mut Fixture, u16, u16);
    let cases: [(&str, Break); 9] = [
        ("loop", |f, next, _| {
            f.driver.write_descriptor(0, HEADER, 16, next, 1);
            f.driver.write_descriptor(1, DATA, 512, next, 0);
            f.driver.offer_head(0);
        }),
        ("next outside of the table", |f, next, _| {
            f.driver.write_descriptor(0, HEADER, 16, next, QUEUE_SIZE);
            f.driver.offer_head(0);
        }),
        ("head outside of the table", |f, _, _| {
            f.driver.offer_head(QUEUE_SIZE);
        }),
        ("too many heads", |f, _, _| {
            f.driver.set_avail_index(QUEUE_SIZE + 1);
        }),
        ("readable after writable", |f, _, _| {
            f.driver.offer(&[writable(STATUS, 1), readable(HEADER, 16)]);
        }),
        ("no status", |f, _, _| {
            f.driver.offer(&[readable(HEADER, 16)]);
        }),
        ("short header", |f, _, _| {
            f.driver.offer(&[readable(HEADER, 15), writable(STATUS, 1)]);
        }),
        ("status outside of memory", |f, _, _| {
            f.driver
                .offer(&[readable(HEADER, 16), writable(1 << 30, 1)]);
        }),
        ("nested indirect table", |f, _, indirect| {
            f.driver.write_descriptor(0, DATA, 16, indirect, 0);
            f.memory.write_obj(DATA, GuestAddress(DATA)).unwrap();
            f.memory.write_obj(16_u32, GuestAddress(DATA + 8)).unwrap();
            f.memory
                .write_obj(indirect, GuestAddress(DATA + 12))
                .unwrap();
            f.driver.offer_head(0);
        }),
    ];
    for (name, offer) in cases {
        let mut fixture = Fixture::new(true, false);
        fixture.header(VIRTIO_BLK_T_IN, 0);
        offer(&mut fixture, next, indirect);
        assert!(fixture.drain().is_err(), "{name}");
        assert!(fixture.driver.take_used().is_none(), "{name}");
    }
}

#[test]
fn a_long_indirect_table_is_refused() {
    let mut fixture = Fixture::new(true, false);
    for i in 0..1000_u64 {
        let at = 0x40000 + i * 16;
        fixture.memory.write_obj(DATA, GuestAddress(at)).unwrap();
        fixture
            .memory
            .write_obj(1_u32, GuestAddress(at + 8))
            .unwrap();
        fixture
            .memory
            .write_obj(VRING_DESC_F_NEXT as u16, GuestAddress(at + 12))
            .unwrap();
        fixture
            .memory
            .write_obj(i as u16 + 1, GuestAddress(at + 14))
            .unwrap();
    }
    fixture
        .driver
        .write_descriptor(0, 0x40000, 16000, VRING_DESC_F_INDIRECT as u16, 0);
    fixture.driver.offer_head(0);
    assert!(matches!(fixture.drain(), Err(worker::QueueError::Chain(_))));
}

#[test]
fn interrupts_only_when_the_driver_wants_them() {
    let mut fixture = Fixture::new(true, false);
    fixture.request(VIRTIO_BLK_T_FLUSH, 0, &[]);
    assert_eq!(fixture.interrupt.event().read().unwrap(), 1);
    fixture.driver.set_no_interrupt();
    fixture.request(VIRTIO_BLK_T_FLUSH, 0, &[]);
    assert!(fixture.interrupt.event().read().is_err());

    let mut fixture = Fixture::new(true, true);
    fixture.driver.set_used_event(2);
    for wanted in [false, false, true, false] {
        fixture.request(VIRTIO_BLK_T_FLUSH, 0, &[]);
        assert_eq!(fixture.interrupt.event().read().is_ok(), wanted);
    }
}

#[test]
fn worker_serves_after_notification_and_stops_at_reset() {
    let image = image();
    let memory = memory();
    let interrupt = Arc::new(Interrupt::new().unwrap());
    let mut block = Block::new(image.path(), false, "").unwrap();
    assert_eq!(block.config()[..8], SECTORS.to_le_bytes());
    for round in 0..3_u64 {
        let mut driver = DriverQueue::new(&memory, RINGS, QUEUE_SIZE);
        let activation = Activation {
            memory: memory.clone(),
            features: block.features(),
            queues: vec![driver.queue(true)],
            interrupt: interrupt.clone(),
        };
        block.activate(activation).unwrap();
        memory
            .write_obj(VIRTIO_BLK_T_IN, GuestAddress(HEADER))
            .unwrap();
        memory.write_obj(round, GuestAddress(HEADER + 8)).unwrap();
        driver.offer(&[
            readable(HEADER, 16),
            writable(DATA, 512),
            writable(STATUS, 1),
        ]);
        block.queue_events()[0].write(1).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while driver.take_used().is_none() {
            assert!(Instant::now() < deadline, "the request was not served");
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut data = [0; 512];
        memory.read_slice(&mut data, GuestAddress(DATA)).unwrap();
        assert_eq!(data, [round as u8; 512]);
        block.reset();
        // Nobody serves this one.
        driver.offer(&[
            readable(HEADER, 16),
            writable(DATA, 512),
            writable(STATUS, 1),
        ]);
        block.queue_events()[0].write(1).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        assert!(driver.take_used().is_none());
        assert!(!interrupt.is_reset_needed());
    }
}

#[test]
fn a_lying_driver_is_asked_for_a_reset() {
    let image = image();
    let memory = memory();
    let interrupt = Arc::new(Interrupt::new().unwrap());
    let mut block = Block::new(image.path(), true, "").unwrap();
    let mut driver = DriverQueue::new(&memory, RINGS, QUEUE_SIZE);
    driver.offer_head(QUEUE_SIZE);
    let activation = Activation {
        memory,
        features: block.features(),
        queues: vec![driver.queue(false)],
        interrupt: interrupt.clone(),
    };
    block.activate(activation).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !interrupt.is_reset_needed() {
        assert!(Instant::now() < deadline, "the lie went unnoticed");
        std::thread::sleep(Duration::from_millis(1));
    }
    block.reset();
}

#[test]
fn images_are_checked_and_locked() {
    let image = image();
    let path = image.path();
    let shared = Disk::open(path, true, "").unwrap();
    assert!(Disk::open(path, true, "").is_ok());
    assert!(matches!(
        Disk::open(path, false, ""),
        Err(DiskError::InUse { .. })
    ));
    drop(shared);
    let alone = Disk::open(path, false, "").unwrap();
    assert!(matches!(
        Disk::open(path, true, ""),
        Err(DiskError::InUse { .. })
    ));
    drop(alone);
    assert!(Disk::open(path, true, "12345678901234567890").is_ok());
    let long = Disk::open(path, true, "123456789012345678901");
    assert!(matches!(long, Err(DiskError::Serial { .. })));
    for len in [0, 1, 511, 513] {
        image.as_file().set_len(len).unwrap();
        assert!(matches!(
            Disk::open(path, true, ""),
            Err(DiskError::Size { .. })
        ));
    }
    let missing = Disk::open(Path::new("/nonexistent/disk"), true, "").unwrap_err();
    assert!(missing.to_string().contains("/nonexistent/disk"));
}

/// Fills the descriptor table at random, with addresses that are often good.
fn descriptors() -> impl Strategy<Value = Vec<(u64, u32, u16, u16)>> {
    let address = prop_oneof![
        Just(HEADER),
        Just(STATUS),
        (0_u64..0x20).prop_map(|page| page << 16),
        0xf_f000_u64..0x10_1000,
        any::<u64>(),
    ];
    let len = prop_oneof![Just(16), Just(1), Just(512), 0_u32..8192, any::<u32>()];
    proptest::collection::vec((address, len, 0_u16..8, 0_u16..10), 8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_chains_are_safe(
        table in descriptors(),
        heads in proptest::collection::vec(0_u16..10, 1..8),
        kind in prop_oneof![0_u32..12, any::<u32>()],
        sector in prop_oneof![0..SECTORS * 2, any::<u64>()],
        event_idx in any::<bool>(),
        noise in proptest::collection::vec(any::<u8>(), 512),
    ) {
        let mut fixture = Fixture::new(false, event_idx);
        // Places that random addresses are likely to hit, as indirect tables.
        for page in 4..0xc_u64 {
            fixture.memory.write_slice(&noise, GuestAddress(page << 16)).unwrap();
        }
        fixture.header(kind, sector);
        for (index, (address, len, flags, next)) in table.into_iter().enumerate() {
            fixture.driver.write_descriptor(index as u16, address, len, flags, next);
        }
        for head in heads {
            fixture.driver.offer_head(head);
        }
        // Either serves them or stops: no panic, and nothing beyond the image.
        let _ = fixture.drain();
        prop_assert_eq!(fixture.image.as_file().metadata().unwrap().len(), SECTORS * SECTOR_SIZE);
        prop_assert!(fixture.server.ring.queue().next_used() <= 8);
    }

    #[test]
    fn parsed_ranges_lie_in_the_disk(
        kind in 0_u32..2,
        sector in prop_oneof![0..SECTORS * 2, any::<u64>()],
        len in prop_oneof![(0_u32..80).prop_map(|n| n * 512), any::<u32>()],
        read_only in any::<bool>(),
    ) {
        let memory = memory();
        memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
        let mut message = Message::default();
        message.readable.push(GuestAddress(HEADER), 16);
        let data = if kind == VIRTIO_BLK_T_IN { &mut message.writable } else { &mut message.readable };
        data.push(GuestAddress(DATA), len);
        message.writable.push(GuestAddress(STATUS), 1);
        let capacity = SECTORS * SECTOR_SIZE;
        match request::parse(&message, &memory, capacity, read_only).unwrap() {
            request::Operation::Read { offset, len: parsed }
            | request::Operation::Write { offset, len: parsed } => {
                prop_assert_eq!(parsed, u64::from(len));
                prop_assert!(offset + parsed <= capacity);
                prop_assert!(kind == VIRTIO_BLK_T_IN || !read_only);
            }
            request::Operation::Reject(request::Status::IoError) => {}
            other => prop_assert!(false, "{:?}", other),
        }
    }
}

/// A block device with an active queue.
fn active(image: &NamedTempFile, memory: &GuestMemory, queue: Queue) -> Block {
    let mut block = Block::new(image.path(), false, "serial").unwrap();
    block.activate(activation(memory, queue)).unwrap();
    block
}

fn activation(memory: &GuestMemory, queue: Queue) -> Activation {
    Activation {
        memory: memory.clone(),
        features: 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_BLK_F_FLUSH,
        queues: vec![queue],
        interrupt: Arc::new(Interrupt::new().unwrap()),
    }
}

fn wait_used(driver: &mut DriverQueue) -> (u16, u32) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(used) = driver.take_used() {
            return used;
        }
        assert!(Instant::now() < deadline, "the request is not served");
        std::thread::yield_now();
    }
}

#[test]
fn what_is_asked_during_a_pause_is_served_after_it() {
    let (image, memory) = (image(), memory());
    let mut driver = DriverQueue::new(&memory, RINGS, QUEUE_SIZE);
    let mut block = active(&image, &memory, driver.queue(false));
    memory
        .write_obj(VIRTIO_BLK_T_FLUSH, GuestAddress(HEADER))
        .unwrap();
    let flush = [readable(HEADER, 16), writable(STATUS, 1)];

    driver.offer(&flush);
    block.queue_events()[0].write(1).unwrap();
    wait_used(&mut driver);
    block.pause();
    assert_eq!(block.progress().unwrap()[0].next_used, 1);
    driver.offer(&flush);
    block.queue_events()[0].write(1).unwrap();
    assert!(driver.take_used().is_none());
    block.pause(); // once more changes nothing
    block.resume().unwrap();
    wait_used(&mut driver);
    assert!(block.progress().is_none(), "only of a paused device");

    // Another process goes on from there.
    block.pause();
    let state = block.save();
    let mut queue = driver.queue(false);
    let progress = block.progress().unwrap()[0];
    queue.set_next_avail(progress.next_avail);
    queue.set_next_used(progress.next_used);
    driver.offer(&flush);
    drop(block);
    let mut copy = Block::new(image.path(), false, "serial").unwrap();
    copy.pause();
    copy.restore(&state).unwrap();
    copy.activate(activation(&memory, queue)).unwrap();
    assert!(driver.take_used().is_none());
    copy.resume().unwrap();
    wait_used(&mut driver);
}

#[test]
fn another_disk_is_refused() {
    let image = image();
    let state = Block::new(image.path(), true, "serial").unwrap().save();
    let mut writable = Block::new(image.path(), false, "serial").unwrap();
    let error = writable.restore(&state).unwrap_err();
    assert_eq!(error, DeviceStateError::ReadOnly { saved: true });
    drop(writable);
    image.as_file().set_len(512).unwrap();
    let mut shorter = Block::new(image.path(), true, "serial").unwrap();
    let error = shorter.restore(&state).unwrap_err().to_string();
    assert!(error.contains("32768") && error.contains("512"), "{error}");
}

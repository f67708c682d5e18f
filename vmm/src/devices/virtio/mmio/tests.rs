use std::sync::Mutex;

use proptest::prelude::*;
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::state::{
    BlockState, DeviceState, DeviceStateError, TransportState, VsockState,
};
use crate::devices::virtio::testing::{DriverQueue, memory};
use crate::devices::virtio::vsock::{Vsock, VsockConfig};
use crate::memory::GuestMemory;

const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1;
const READY_TO_GO: u32 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;

#[derive(Default)]
struct Log {
    activations: Vec<Activation>,
    resets: usize,
    config_writes: Vec<(u64, Vec<u8>)>,
}

struct TestDevice {
    events: [Arc<EventFd>; 2],
    log: Arc<Mutex<Log>>,
}

impl VirtioDevice for TestDevice {
    fn device_type(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }

    fn queue_events(&self) -> &[Arc<EventFd>] {
        &self.events
    }

    fn config(&self) -> &[u8] {
        &[1, 2, 3, 4, 5, 6]
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.log
            .lock()
            .unwrap()
            .config_writes
            .push((offset, data.to_vec()));
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.log.lock().unwrap().activations.push(activation);
        Ok(())
    }

    fn reset(&mut self) {
        self.log.lock().unwrap().resets += 1;
    }

    fn pause(&mut self) {}

    fn resume(&mut self) -> Result<(), ActivateError> {
        Ok(())
    }

    fn progress(&self) -> Option<Vec<QueueProgress>> {
        let log = self.log.lock().unwrap();
        let queues = &log.activations.last()?.queues;
        let progress = queues.iter().map(|queue| QueueProgress {
            next_avail: queue.next_avail(),
            next_used: queue.next_used(),
        });
        Some(progress.collect())
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock(VsockState {})
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        match state {
            DeviceState::Vsock(_) => Ok(()),
            DeviceState::Block(_) => Err(DeviceStateError::kind("a test device", state)),
        }
    }
}

fn event() -> Arc<EventFd> {
    Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())
}

fn transport() -> (Transport, Arc<Mutex<Log>>, GuestMemory) {
    let log = Arc::new(Mutex::new(Log::default()));
    let device = TestDevice {
        events: [event(), event()],
        log: log.clone(),
    };
    let memory = memory();
    (
        Transport::new(memory.clone(), Box::new(device)).unwrap(),
        log,
        memory,
    )
}

fn get(transport: &mut Transport, offset: u64) -> u32 {
    let mut data = [0; 4];
    transport.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn set(transport: &mut Transport, offset: u64, value: u32) {
    transport.write(offset, &value.to_le_bytes());
}

/// Takes the device to `FEATURES_OK`.
fn negotiate(transport: &mut Transport, features: u64) -> u32 {
    set(transport, reg::STATUS, 0);
    set(transport, reg::STATUS, 1);
    set(transport, reg::STATUS, 3);
    for (sel, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
        set(transport, reg::DRIVER_FEATURES_SEL, sel);
        set(transport, reg::DRIVER_FEATURES, half);
    }
    set(transport, reg::STATUS, READY_TO_GO);
    get(transport, reg::STATUS)
}

fn set_queue(transport: &mut Transport, index: u32, size: u32, driver: &DriverQueue) {
    set(transport, reg::QUEUE_SEL, index);
    set(transport, reg::QUEUE_NUM, size);
    set(transport, reg::QUEUE_DESC_LOW, driver.descriptors() as u32);
    set(transport, reg::QUEUE_DRIVER_LOW, driver.avail_ring() as u32);
    set(transport, reg::QUEUE_DEVICE_LOW, driver.used_ring() as u32);
    set(transport, reg::QUEUE_READY, 1);
}

fn queues(memory: &GuestMemory) -> (DriverQueue, DriverQueue) {
    (
        DriverQueue::new(memory, 0x10000, 16),
        DriverQueue::new(memory, 0x20000, 8),
    )
}

fn bring_up(transport: &mut Transport, memory: &GuestMemory) -> u32 {
    let (first, second) = queues(memory);
    negotiate(transport, FEATURES);
    set_queue(transport, 0, 16, &first);
    set_queue(transport, 1, 8, &second);
    set(transport, reg::STATUS, READY_TO_GO | status::DRIVER_OK);
    get(transport, reg::STATUS)
}

#[test]
fn tells_what_it_is() {
    let (mut transport, ..) = transport();
    assert_eq!(
        get(&mut transport, reg::MAGIC_VALUE).to_le_bytes(),
        *b"virt"
    );
    assert_eq!(get(&mut transport, reg::VERSION), 2);
    assert_eq!(get(&mut transport, reg::DEVICE_ID), 42);
    assert_eq!(get(&mut transport, reg::STATUS), 0);
    assert_eq!(get(&mut transport, reg::SHM_LEN_LOW), u32::MAX);
    for (sel, half) in [
        (0, FEATURES as u32),
        (1, (FEATURES >> 32) as u32),
        (2, 0),
        (u32::MAX, 0),
    ] {
        set(&mut transport, reg::DEVICE_FEATURES_SEL, sel);
        assert_eq!(get(&mut transport, reg::DEVICE_FEATURES), half);
    }
    for (sel, max) in [(0, 16), (1, 8), (2, 0), (u32::MAX, 0)] {
        set(&mut transport, reg::QUEUE_SEL, sel);
        assert_eq!(get(&mut transport, reg::QUEUE_NUM_MAX), max);
    }
}

#[test]
fn comes_up_by_the_book_and_again_after_reset() {
    let (mut transport, log, memory) = transport();
    for round in 1..=2 {
        assert_eq!(
            bring_up(&mut transport, &memory),
            READY_TO_GO | status::DRIVER_OK
        );
        let log = log.lock().unwrap();
        assert_eq!(log.activations.len(), round);
        let activation = log.activations.last().unwrap();
        assert_eq!(activation.features, FEATURES);
        let sizes: Vec<_> = activation.queues.iter().map(QueueT::size).collect();
        assert_eq!(sizes, [16, 8]);
        assert!(activation.queues.iter().all(QueueT::event_idx_enabled));
    }
    assert_eq!(log.lock().unwrap().resets, 1);
    set(&mut transport, reg::STATUS, 0);
    assert_eq!(log.lock().unwrap().resets, 2);
    assert_eq!(get(&mut transport, reg::STATUS), 0);
    assert_eq!(get(&mut transport, reg::QUEUE_READY), 0);
}

#[test]
fn refuses_features_that_make_no_sense() {
    let (mut transport, ..) = transport();
    let before = status::ACKNOWLEDGE | status::DRIVER;
    assert_eq!(negotiate(&mut transport, FEATURES), READY_TO_GO);
    assert_eq!(
        negotiate(&mut transport, 1 << VIRTIO_F_VERSION_1),
        READY_TO_GO
    );
    assert_eq!(negotiate(&mut transport, 0), before);
    assert_eq!(negotiate(&mut transport, 1), before);
    assert_eq!(negotiate(&mut transport, FEATURES | 2), before);
    assert_eq!(negotiate(&mut transport, FEATURES | 1 << 63), before);
    // A bit that cannot be: the rest is fine.
    set(&mut transport, reg::STATUS, 0);
    set(&mut transport, reg::STATUS, 1);
    set(&mut transport, reg::STATUS, 3);
    set(&mut transport, reg::DRIVER_FEATURES_SEL, 2);
    set(&mut transport, reg::DRIVER_FEATURES, 1);
    set(&mut transport, reg::DRIVER_FEATURES_SEL, 1);
    set(
        &mut transport,
        reg::DRIVER_FEATURES,
        (FEATURES >> 32) as u32,
    );
    set(&mut transport, reg::STATUS, READY_TO_GO);
    assert_eq!(get(&mut transport, reg::STATUS), before);
}

#[test]
fn status_bits_come_in_order_and_stay() {
    let (mut transport, ..) = transport();
    for value in [2, 3, 4, 8, 15, 64, 256, !status::FAILED] {
        set(&mut transport, reg::STATUS, value);
        assert_eq!(get(&mut transport, reg::STATUS), 0, "{value}");
    }
    negotiate(&mut transport, FEATURES);
    for value in [1, 3, 8, 9, READY_TO_GO, READY_TO_GO | 16] {
        set(&mut transport, reg::STATUS, value);
        assert_eq!(get(&mut transport, reg::STATUS), READY_TO_GO, "{value}");
    }
    set(&mut transport, reg::STATUS, READY_TO_GO | status::FAILED);
    assert_eq!(
        get(&mut transport, reg::STATUS),
        READY_TO_GO | status::FAILED
    );
    // Only a reset leads out of this.
    set(
        &mut transport,
        reg::STATUS,
        READY_TO_GO | status::FAILED | status::DRIVER_OK,
    );
    assert_eq!(
        get(&mut transport, reg::STATUS),
        READY_TO_GO | status::FAILED
    );
    assert_eq!(negotiate(&mut transport, FEATURES), READY_TO_GO);
}

#[test]
fn queue_registers_are_open_only_while_they_are_negotiated() {
    let (mut transport, _, memory) = transport();
    let (first, _) = queues(&memory);
    set_queue(&mut transport, 0, 16, &first);
    assert_eq!(get(&mut transport, reg::QUEUE_READY), 0);
    assert_eq!(transport.queues[0], QueueRegisters::new(16));

    negotiate(&mut transport, FEATURES);
    set_queue(&mut transport, 0, 16, &first);
    assert_eq!(get(&mut transport, reg::QUEUE_READY), 1);
    let ready = transport.queues[0].clone();
    set(&mut transport, reg::QUEUE_NUM, 8);
    set(&mut transport, reg::QUEUE_DESC_HIGH, 8);
    assert_eq!(transport.queues[0], ready);
    set(&mut transport, reg::QUEUE_READY, 0);
    set(&mut transport, reg::QUEUE_NUM, 8);
    assert_eq!(transport.queues[0].size, 8);

    assert_eq!(
        bring_up(&mut transport, &memory),
        READY_TO_GO | status::DRIVER_OK
    );
    set(&mut transport, reg::QUEUE_READY, 0);
    assert_eq!(get(&mut transport, reg::QUEUE_READY), 1);
}

#[test]
fn unusable_queues_need_a_reset() {
    let (mut transport, log, memory) = transport();
    let good = (0x1_0000_u64, 0x1_1000_u64, 0x1_2000_u64, 16_u32);
    let bad = [
        (good.0, good.1, good.2, 0),
        (good.0, good.1, good.2, 3),
        (good.0, good.1, good.2, 32),
        (good.0, good.1, good.2, 0x1_0010),
        (good.0 + 8, good.1, good.2, 16),
        (good.0, good.1 + 1, good.2, 16),
        (good.0, good.1, good.2 + 2, 16),
        (good.0, 0, good.2, 16),
        (0xf_ffe0, good.1, good.2, 16),
        (good.0, 0xf_fffe, good.2, 16),
        (good.0, good.1, 0xf_fffc, 16),
        (1 << 40, good.1, good.2, 16),
        (!0xf, good.1, good.2, 16),
        (good.0, !1, good.2, 16),
        (good.0, good.1, !3, 16),
    ];
    let second = DriverQueue::new(&memory, 0x20000, 8);
    for (desc, driver, device, size) in bad {
        negotiate(&mut transport, FEATURES);
        set_queue(&mut transport, 1, 8, &second);
        set(&mut transport, reg::QUEUE_SEL, 0);
        set(&mut transport, reg::QUEUE_NUM, size);
        let registers = [
            (reg::QUEUE_DESC_LOW, reg::QUEUE_DESC_HIGH, desc),
            (reg::QUEUE_DRIVER_LOW, reg::QUEUE_DRIVER_HIGH, driver),
            (reg::QUEUE_DEVICE_LOW, reg::QUEUE_DEVICE_HIGH, device),
        ];
        for (low, high, address) in registers {
            set(&mut transport, low, address as u32);
            set(&mut transport, high, (address >> 32) as u32);
        }
        set(&mut transport, reg::QUEUE_READY, 1);
        set(&mut transport, reg::STATUS, READY_TO_GO | status::DRIVER_OK);
        let status = get(&mut transport, reg::STATUS);
        assert_ne!(
            status & status::DEVICE_NEEDS_RESET,
            0,
            "{desc:x} {driver:x} {device:x} {size}"
        );
        assert_eq!(get(&mut transport, reg::INTERRUPT_STATUS), 2);
    }
    // One queue never made ready.
    negotiate(&mut transport, FEATURES);
    set_queue(&mut transport, 1, 8, &second);
    set(&mut transport, reg::STATUS, READY_TO_GO | status::DRIVER_OK);
    assert_ne!(
        get(&mut transport, reg::STATUS) & status::DEVICE_NEEDS_RESET,
        0
    );
    assert!(log.lock().unwrap().activations.is_empty());
    assert_eq!(
        bring_up(&mut transport, &memory),
        READY_TO_GO | status::DRIVER_OK
    );
    assert_eq!(get(&mut transport, reg::INTERRUPT_STATUS), 0);
}

#[test]
fn interrupts_are_set_by_the_device_and_cleared_by_the_driver() {
    let (mut transport, ..) = transport();
    let interrupt = transport.interrupt().clone();
    interrupt.used_buffer();
    interrupt.used_buffer();
    assert_eq!(interrupt.event().read().unwrap(), 2);
    assert_eq!(get(&mut transport, reg::INTERRUPT_STATUS), 1);
    let generation = get(&mut transport, reg::CONFIG_GENERATION);
    interrupt.config_changed();
    assert_eq!(get(&mut transport, reg::INTERRUPT_STATUS), 3);
    assert_ne!(get(&mut transport, reg::CONFIG_GENERATION), generation);
    set(&mut transport, reg::INTERRUPT_ACK, 1);
    assert_eq!(get(&mut transport, reg::INTERRUPT_STATUS), 2);
    set(&mut transport, reg::INTERRUPT_ACK, u32::MAX);
    assert_eq!(get(&mut transport, reg::INTERRUPT_STATUS), 0);
}

#[test]
fn notifications_reach_the_queue_of_an_active_device() {
    let (mut transport, _, memory) = transport();
    set(&mut transport, reg::QUEUE_NOTIFY, 1);
    assert!(transport.queue_events()[1].read().is_err());
    bring_up(&mut transport, &memory);
    for index in [1, 2, u32::MAX] {
        set(&mut transport, reg::QUEUE_NOTIFY, index);
    }
    assert_eq!(transport.queue_events()[1].read().unwrap(), 1);
    assert!(transport.queue_events()[0].read().is_err());
}

#[test]
fn configuration_space_takes_any_width_and_offset() {
    let (mut transport, log, _) = transport();
    let mut data = [0xee; 8];
    transport.read(reg::CONFIG + 2, &mut data);
    assert_eq!(data, [3, 4, 5, 6, 0, 0, 0, 0]);
    let mut byte = [0xee];
    transport.read(reg::CONFIG + 5, &mut byte);
    assert_eq!(byte, [6]);
    transport.read(Transport::SIZE - 1, &mut byte);
    assert_eq!(byte, [0]);
    transport.write(reg::CONFIG, &[1]);
    assert!(log.lock().unwrap().config_writes.is_empty());
    negotiate(&mut transport, FEATURES);
    transport.write(reg::CONFIG + 1, &[1, 2]);
    assert_eq!(log.lock().unwrap().config_writes, [(1, vec![1, 2])]);
    // Registers answer to aligned words only.
    for (offset, width) in [(0, 1), (0, 2), (0, 8), (2, 4), (1, 4)] {
        let mut data = vec![0xee; width];
        transport.read(offset, &mut data);
        assert!(data.iter().all(|&byte| byte == 0), "{offset} {width}");
    }
}

/// An access that has a good chance to be one that matters.
fn access() -> impl Strategy<Value = (u64, Vec<u8>, bool)> {
    let offset = prop_oneof![
        4 => (0_u64..0x44).prop_map(|word| word * 4),
        2 => Just(reg::STATUS),
        1 => 0..Transport::SIZE - 8,
    ];
    let value = prop_oneof![
        (0_u32..16).prop_map(|value| value.to_le_bytes().to_vec()),
        (0_u32..0x200).prop_map(|page| (page << 12).to_le_bytes().to_vec()),
        any::<u32>().prop_map(|value| value.to_le_bytes().to_vec()),
        proptest::collection::vec(any::<u8>(), 1..9),
    ];
    (offset, value, any::<bool>())
}

/// Plays `accesses`, before each one with some chance a whole bring-up, on a
/// device; the state stays consistent and nothing panics.
fn play(transport: &mut Transport, accesses: &[(u64, Vec<u8>, bool)]) {
    for (offset, value, is_write) in accesses {
        if *is_write {
            transport.write(*offset, value);
        } else {
            let mut data = value.clone();
            transport.read(*offset, &mut data);
        }
        assert!(!transport.active || transport.status & status::DRIVER_OK != 0);
        let order = [15, 7, 3, 1, 0].map(|mask| {
            // The specification's order: ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK.
            let names = [
                status::ACKNOWLEDGE,
                status::DRIVER,
                status::FEATURES_OK,
                status::DRIVER_OK,
            ];
            (0..4)
                .filter(|bit| mask & (1 << bit) != 0)
                .fold(0, |all, bit| all | names[bit])
        });
        assert!(order.contains(&(transport.status & !status::FAILED)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_accesses_are_safe(accesses in proptest::collection::vec(access(), 1..100)) {
        let (mut transport, ..) = transport();
        play(&mut transport, &accesses);
    }

    #[test]
    fn any_accesses_to_a_running_device_are_safe(
        accesses in proptest::collection::vec(access(), 1..40),
    ) {
        let (mut transport, _, memory) = transport();
        bring_up(&mut transport, &memory);
        play(&mut transport, &accesses);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]

    #[test]
    fn any_accesses_to_real_devices_are_safe(
        accesses in proptest::collection::vec(access(), 1..200),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::write(&image, [0; 4096]).unwrap();
        let path = dir.path().join("vsock");
        let config = VsockConfig { guest_cid: 3, path, ports: std::collections::BTreeMap::new() };
        let devices: [Box<dyn VirtioDevice>; 2] = [
            Box::new(Block::new(&image, true, "x").unwrap()),
            Box::new(Vsock::new(config).unwrap()),
        ];
        for device in devices {
            let features = device.features();
            let sizes = device.queue_sizes().to_vec();
            let memory = memory();
            let mut transport = Transport::new(memory.clone(), device).unwrap();
            negotiate(&mut transport, features);
            for (index, &size) in sizes.iter().enumerate() {
                let queue = DriverQueue::new(&memory, (index as u64 + 1) << 16, size);
                set_queue(&mut transport, index as u32, size.into(), &queue);
            }
            set(&mut transport, reg::STATUS, READY_TO_GO | status::DRIVER_OK);
            prop_assert!(transport.active);
            play(&mut transport, &accesses);
        }
    }
}

/// Whatever a driver writes, to whatever registers, in whatever order.
fn writes() -> impl Strategy<Value = Vec<(u64, u32)>> {
    let offsets = prop::sample::select(vec![
        reg::DEVICE_FEATURES_SEL,
        reg::DRIVER_FEATURES_SEL,
        reg::DRIVER_FEATURES,
        reg::QUEUE_SEL,
        reg::QUEUE_NUM,
        reg::QUEUE_READY,
        reg::STATUS,
        reg::QUEUE_DESC_LOW,
        reg::QUEUE_DRIVER_LOW,
        reg::QUEUE_DEVICE_LOW,
        reg::QUEUE_DEVICE_HIGH,
        reg::INTERRUPT_ACK,
    ]);
    prop::collection::vec((offsets, 0_u32..20), 0..24)
}

fn saved(transport: &mut Transport) -> TransportState {
    transport.pause();
    let bytes = minicbor::to_vec(transport.save()).unwrap();
    minicbor::decode(&bytes).unwrap()
}

proptest! {
    #[test]
    fn wherever_a_driver_is_it_goes_on(writes in writes(), steps in 0_u32..3) {
        let (mut original, _, memory) = transport();
        if steps > 0 {
            negotiate(&mut original, FEATURES);
        }
        if steps > 1 {
            let (first, second) = queues(&memory);
            set_queue(&mut original, 0, 16, &first);
            set_queue(&mut original, 1, 8, &second);
            set(&mut original, reg::STATUS, READY_TO_GO | status::DRIVER_OK);
        }
        for (offset, value) in writes {
            set(&mut original, offset, value);
        }
        let state = saved(&mut original);
        let (mut copy, log, _) = transport();
        copy.restore(&state).unwrap();
        prop_assert_eq!(saved(&mut copy), state.clone());
        for offset in (0..0x100).step_by(4) {
            prop_assert_eq!(get(&mut copy, offset), get(&mut original, offset), "{:#x}", offset);
        }
        let activated = log.lock().unwrap().activations.len();
        prop_assert_eq!(activated, usize::from(state.progress.is_some()));
    }
}

#[test]
fn queues_go_on_where_they_were() {
    let (mut original, _, memory) = transport();
    bring_up(&mut original, &memory);
    let mut state = saved(&mut original);
    let progress = state.progress.as_mut().unwrap();
    progress[1] = QueueProgress {
        next_avail: 0xffff,
        next_used: 7,
    };
    let (mut copy, log, _) = transport();
    copy.restore(&state).unwrap();
    let log = log.lock().unwrap();
    let queue = &log.activations[0].queues[1];
    assert_eq!((queue.next_avail(), queue.next_used()), (0xffff, 7));
    assert!(queue.event_idx_enabled());
}

#[test]
fn states_that_no_driver_could_reach_are_refused() {
    let (mut original, _, memory) = transport();
    bring_up(&mut original, &memory);
    let state = saved(&mut original);
    let refused = |change: &dyn Fn(&mut TransportState)| {
        let mut state = state.clone();
        change(&mut state);
        transport().0.restore(&state).unwrap_err()
    };
    let error = refused(&|s| {
        s.device = DeviceState::Block(BlockState {
            capacity: 512,
            read_only: false,
        });
    });
    assert!(error.to_string().contains("a block device"), "{error}");
    assert_eq!(refused(&|s| s.queues.truncate(1)), DeviceStateError::Queues);
    assert_eq!(
        refused(&|s| s.queues[0].max_size = 32),
        DeviceStateError::Queues
    );
    assert_eq!(
        refused(&|s| s.progress = Some(Vec::new())),
        DeviceStateError::Queues
    );
    assert!(matches!(
        refused(&|s| s.driver_features = u64::MAX),
        DeviceStateError::Registers(_)
    ));
    assert!(matches!(
        refused(&|s| s.status = READY_TO_GO),
        DeviceStateError::Registers(_)
    ));
    assert!(matches!(
        refused(&|s| s.queues[0].descriptors = !15),
        DeviceStateError::Activate(_)
    ));
}

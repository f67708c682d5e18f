//! Register offsets of virtio over MMIO (virtio 1.2, 4.2.2) and the bits of
//! the device status (2.1). All registers are 32 bits wide, little-endian.

pub(super) const MAGIC_VALUE: u64 = 0x00;
pub(super) const VERSION: u64 = 0x04;
pub(super) const DEVICE_ID: u64 = 0x08;
pub(super) const VENDOR_ID: u64 = 0x0c;
pub(super) const DEVICE_FEATURES: u64 = 0x10;
pub(super) const DEVICE_FEATURES_SEL: u64 = 0x14;
pub(super) const DRIVER_FEATURES: u64 = 0x20;
pub(super) const DRIVER_FEATURES_SEL: u64 = 0x24;
pub(super) const QUEUE_SEL: u64 = 0x30;
pub(super) const QUEUE_NUM_MAX: u64 = 0x34;
pub(super) const QUEUE_NUM: u64 = 0x38;
pub(super) const QUEUE_READY: u64 = 0x44;
pub(super) const QUEUE_NOTIFY: u64 = 0x50;
pub(super) const INTERRUPT_STATUS: u64 = 0x60;
pub(super) const INTERRUPT_ACK: u64 = 0x64;
pub(super) const STATUS: u64 = 0x70;
pub(super) const QUEUE_DESC_LOW: u64 = 0x80;
pub(super) const QUEUE_DESC_HIGH: u64 = 0x84;
pub(super) const QUEUE_DRIVER_LOW: u64 = 0x90;
pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x94;
pub(super) const QUEUE_DEVICE_LOW: u64 = 0xa0;
pub(super) const QUEUE_DEVICE_HIGH: u64 = 0xa4;
pub(super) const SHM_LEN_LOW: u64 = 0xb0;
pub(super) const SHM_BASE_HIGH: u64 = 0xbc;
pub(super) const CONFIG_GENERATION: u64 = 0xfc;
/// The device's own configuration space starts here.
pub(super) const CONFIG: u64 = 0x100;

/// `MagicValue`: "virt".
pub(super) const MAGIC: u32 = 0x7472_6976;
/// `VendorID`: "insu".
pub(super) const VENDOR: u32 = 0x7573_6e69;
/// `Version`: not the legacy interface, which is 1.
pub(super) const MODERN: u32 = 2;

/// Bits of the device status.
pub(super) mod status {
    pub(in super::super) const ACKNOWLEDGE: u32 = 1;
    pub(in super::super) const DRIVER: u32 = 2;
    pub(in super::super) const DRIVER_OK: u32 = 4;
    pub(in super::super) const FEATURES_OK: u32 = 8;
    pub(in super::super) const DEVICE_NEEDS_RESET: u32 = 64;
    pub(in super::super) const FAILED: u32 = 128;
}

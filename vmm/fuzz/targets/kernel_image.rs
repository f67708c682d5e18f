//! A kernel image of any bytes: refused, or loaded within guest memory.
//!
//! Run it with `cargo +nightly fuzz run kernel_image` in `vmm`.

#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;
use vmm::boot;
use vmm::config::{BootArgs, BootSource, InitrdPaths, VcpuCount};
use vmm::memory::GuestMemory;

const MEMORY: usize = 32 << 20;

fuzz_target!(|image: &[u8]| {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let path = dir.path().join("vmlinux");
    fs::write(&path, image).expect("room for the image");
    let source = BootSource {
        kernel_image_path: path,
        boot_args: BootArgs::default(),
        initrd_paths: InitrdPaths::default(),
    };
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("guest memory");
    if let Ok(entry) = boot::load(&memory, &source, VcpuCount::MIN, &[]) {
        assert!(entry.0.0 < MEMORY as u64);
    }
});

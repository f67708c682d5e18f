//! A state file of any bytes: refused, or a machine that is written as it was
//! read.
//!
//! Run it with `cargo +nightly fuzz run snapshot_state` in `vmm`.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use vmm::snapshot::file::{MAGIC, VERSION, decode, encode};
use vmm::snapshot::{cpu, xxh64};

fuzz_target!(|input: &[u8]| {
    let path = Path::new("state");
    let _ = decode(input, path);

    // Framed as it should be, so that the payload is looked at.
    let mut file = MAGIC.to_vec();
    file.extend(VERSION.to_le_bytes());
    file.extend([0; 4]);
    file.extend((input.len() as u64).to_le_bytes());
    file.extend(xxh64(input).to_le_bytes());
    file.extend(input);
    let Ok(state) = decode(&file, path) else {
        return;
    };
    assert_eq!(decode(&encode(&state), path).expect("we wrote it"), state);
    let _ = state.cpuid();
    let _ = cpu::check(&state.cpuid.0, &[], true);
    let _ = cpu::check(&[], &state.cpuid.0, false);
    if state.check().is_ok() {
        let size: u64 = state.memory.ranges.iter().map(|range| range.len).sum();
        assert_eq!(size, state.memory.content.size);
        for part in &state.memory.changed {
            assert!(part.start + part.len <= size);
        }
    }
});

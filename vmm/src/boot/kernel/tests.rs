//! Tests of the kernel loader, with images made here.

use std::fs;

use proptest::prelude::*;

use super::*;

/// A kernel of one segment: `code` at `address`, with `bss` zero bytes behind it.
fn image(address: u64, code: &[u8], bss: u64) -> Vec<u8> {
    let mut image = vec![0; ELF_HEADER_SIZE + PROGRAM_HEADER_SIZE];
    image[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let mut put = |offset: usize, bytes: &[u8]| {
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(16, &ET_EXEC.to_le_bytes());
    put(18, &EM_X86_64.to_le_bytes());
    put(24, &address.to_le_bytes());
    put(32, &(ELF_HEADER_SIZE as u64).to_le_bytes());
    put(54, &(PROGRAM_HEADER_SIZE as u16).to_le_bytes());
    put(56, &1u16.to_le_bytes());
    put(64, &PT_LOAD.to_le_bytes());
    put(
        64 + 8,
        &((ELF_HEADER_SIZE + PROGRAM_HEADER_SIZE) as u64).to_le_bytes(),
    );
    put(64 + 24, &address.to_le_bytes());
    put(64 + 32, &(code.len() as u64).to_le_bytes());
    put(64 + 40, &(code.len() as u64 + bss).to_le_bytes());
    image.extend_from_slice(code);
    image
}

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&layout::ram_ranges(16 << 20)).unwrap()
}

fn load_bytes(bytes: &[u8]) -> Result<LoadedKernel, KernelError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vmlinux");
    fs::write(&path, bytes).unwrap();
    load(&memory(), &path)
}

fn refused(bytes: &[u8]) -> String {
    load_bytes(bytes).expect_err("must be refused").to_string()
}

#[test]
fn a_kernel_is_loaded_where_it_was_linked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vmlinux");
    fs::write(&path, image(0x20_0000, b"\xf4code", 0x100)).unwrap();
    let memory = memory();
    let kernel = load(&memory, &path).unwrap();
    assert_eq!(
        kernel,
        LoadedKernel {
            entry: GuestAddress(0x20_0000),
            end: 0x20_0105
        }
    );
    let mut code = [0; 5];
    memory
        .read_slice(&mut code, GuestAddress(0x20_0000))
        .unwrap();
    assert_eq!(&code, b"\xf4code");
}

#[test]
fn what_is_no_kernel_is_named_for_what_it_is() {
    let mut bzimage = vec![0; 0x400];
    bzimage[0x202..0x206].copy_from_slice(b"HdrS");
    let cases: [(&[u8], &str); 9] = [
        (b"", "an empty file"),
        (b"#!/bin/sh\necho\n", "a text file"),
        (b"\x1f\x8b\x08\0", "a gzip file"),
        (b"\x28\xb5\x2f\xfd\0", "a zstd file"),
        (b"070701000", "a cpio archive"),
        (&bzimage, "a compressed kernel (bzImage)"),
        (b"\x7fELF\x01\x01", "a 32-bit ELF file"),
        (b"\x7fELF\x02\x02", "an ELF file of a foreign byte order"),
        (b"\x00\x01\x02\x03", "a file of an unknown kind"),
    ];
    for (bytes, found) in cases {
        let error = refused(bytes);
        assert!(error.contains(found), "{error} should contain {found}");
    }
    assert!(
        load(&memory(), Path::new("/"))
            .unwrap_err()
            .to_string()
            .contains("a directory")
    );
}

#[test]
fn a_program_is_no_kernel() {
    let mut program = image(0x20_0000, b"code", 0);
    program[16] = 3; // ET_DYN
    assert!(refused(&program).contains("another type"));
}

#[test]
fn truncation_is_seen_wherever_it_is() {
    let whole = image(0x20_0000, &[0x90; 64], 0);
    for length in [5, 63, 100, whole.len() - 1] {
        let error = refused(&whole[..length]);
        assert!(error.contains("is truncated"), "{length}: {error}");
    }
}

#[test]
fn a_kernel_outside_memory_is_refused() {
    for address in [0x1000, (16 << 20) - 4, 1 << 40, u64::MAX - 10] {
        let error = refused(&image(address, b"12345678", 0));
        assert!(error.contains("raise mem_size_mib"), "{error}");
    }
    let error = refused(&image(0x20_0000, b"code", u64::MAX / 2));
    assert!(error.contains("of guest memory"), "{error}");
}

#[test]
fn an_entry_point_outside_the_image_is_refused() {
    let mut kernel = image(0x20_0000, b"code", 0);
    kernel[24..32].copy_from_slice(&0x10_0000u64.to_le_bytes());
    assert!(refused(&kernel).contains("entry point"));
}

#[test]
fn a_missing_file_is_named() {
    let error = load(&memory(), Path::new("/nonexistent/vmlinux")).unwrap_err();
    assert!(
        error.to_string().contains("/nonexistent/vmlinux"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
        prop_assert!(load_bytes(&bytes).is_err());
    }

    #[test]
    fn a_kernel_with_changed_headers_never_panics(
        changes in proptest::collection::vec((0usize..120, any::<u8>()), 1..12)
    ) {
        let mut kernel = image(0x20_0000, &[0x90; 32], 0x1000);
        for (offset, byte) in changes {
            kernel[offset] = byte;
        }
        // Whatever is accepted lies within memory.
        if let Ok(loaded) = load_bytes(&kernel) {
            prop_assert!(loaded.end <= 16 << 20);
            prop_assert!(loaded.entry.0 < loaded.end);
        }
    }
}

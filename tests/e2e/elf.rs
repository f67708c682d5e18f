//! ELF files of a few instructions.

/// An executable, or a kernel, that is loaded and entered at `address`, a
/// multiple of the page size.
pub(crate) fn executable(address: u64, code: &[u8]) -> Vec<u8> {
    let mut elf = Vec::new();
    elf.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // An executable for x86-64.
    for half in [2u16, 62] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    elf.extend_from_slice(&1u32.to_le_bytes());
    // Entry, program headers, section headers.
    for word in [address, 64, 0] {
        elf.extend_from_slice(&word.to_le_bytes());
    }
    elf.extend_from_slice(&0u32.to_le_bytes());
    // Sizes and numbers of headers.
    for half in [64u16, 56, 1, 64, 0, 0] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    // A loaded segment that can be executed.
    for half in [1u32, 5] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    let size = code.len() as u64;
    for word in [0x1000, address, address, size, size, 0x1000] {
        elf.extend_from_slice(&u64::to_le_bytes(word));
    }
    elf.resize(0x1000, 0);
    elf.extend_from_slice(code);
    elf
}

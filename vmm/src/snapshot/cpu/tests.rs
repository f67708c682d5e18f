use super::*;

fn leaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = registers;
    kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx,
        ecx,
        edx,
        ..kvm_cpuid_entry2::default()
    }
}

fn vendor(name: &[u8; 12]) -> kvm_cpuid_entry2 {
    let word = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
    leaf(0, 0, [0xd, word(0), word(8), word(4)])
}

fn intel() -> kvm_cpuid_entry2 {
    vendor(b"GenuineIntel")
}

const SKYLAKE: u32 = 0x5_0654;

#[test]
fn a_missing_feature_is_named() {
    let saved = [
        intel(),
        leaf(1, 0, [SKYLAKE, 0, 1 << 28 | 1 << 26, 0]),
        leaf(7, 0, [0, 1 << 16 | 1 << 5, 0, 1 << 9]),
    ];
    let host = [
        intel(),
        leaf(1, 0, [SKYLAKE, 0, 1 << 26, 0]),
        leaf(7, 0, [0, 1 << 5, 0, 1 << 9]),
    ];
    let error = check(&saved, &host, true).unwrap_err();
    assert_eq!(
        error,
        CpuMismatch::Features {
            missing: vec!["avx".to_owned(), "avx512f".to_owned()]
        }
    );
    assert!(error.to_string().contains("avx512f"));
    // The other way there is no harm.
    check(&host, &saved, false).unwrap();
}

#[test]
fn a_missing_leaf_is_missing_features_and_a_bit_without_name_has_a_place() {
    let saved = [intel(), leaf(7, 2, [0, 0, 0, 1 << 30])];
    let CpuMismatch::Features { missing } = check(&saved, &[intel()], true).unwrap_err() else {
        panic!("another error");
    };
    assert_eq!(missing, ["CPUID 0x7.2 Edx bit 30"]);
}

#[test]
fn what_the_machine_adds_need_not_be_supported() {
    let added = leaf(
        1,
        0,
        [
            SKYLAKE,
            0,
            1 << 31 | 1 << 27 | 1 << 24 | 1 << 3,
            1 << 28 | 1 << 9,
        ],
    );
    let saved = [intel(), added, leaf(7, 0, [0, 0, 1 << 4, 0])];
    check(&saved, &[intel(), leaf(1, 0, [SKYLAKE, 0, 0, 0])], false).unwrap();
}

#[test]
fn another_vendor_is_refused_even_by_force() {
    let error = check(&[vendor(b"AuthenticAMD")], &[intel()], true).unwrap_err();
    assert!(matches!(error, CpuMismatch::Vendor { .. }), "{error}");
}

#[test]
fn another_model_with_all_features_needs_force() {
    let saved = [intel(), leaf(1, 0, [SKYLAKE, 0, 0, 0])];
    let host = [intel(), leaf(1, 0, [0x6_06a6, 0, 0, 0])];
    let error = check(&saved, &host, false).unwrap_err();
    assert_eq!(
        error,
        CpuMismatch::Model {
            saved: (6, 0x55),
            host: (6, 0x6a)
        }
    );
    check(&saved, &host, true).unwrap();
    // Another stepping is the same model.
    check(
        &saved,
        &[intel(), leaf(1, 0, [SKYLAKE + 1, 0, 0, 0])],
        false,
    )
    .unwrap();
}

#[test]
fn addresses_and_the_extended_state_must_fit() {
    let saved = [intel(), leaf(0x8000_0008, 0, [0x302e, 0, 0, 0])];
    let host = [intel(), leaf(0x8000_0008, 0, [0x3027, 0, 0, 0])];
    assert_eq!(
        check(&saved, &host, true).unwrap_err(),
        CpuMismatch::Addresses {
            kind: "physical",
            saved: 46,
            host: 39
        }
    );
    let layout = |offset| {
        [
            intel(),
            leaf(0xd, 0, [0x207, 0, 0, 0]),
            leaf(0xd, 2, [256, 576, 0, 0]),
            leaf(0xd, 9, [8, offset, 0, 0]),
        ]
    };
    check(&layout(2688), &layout(2688), false).unwrap();
    assert_eq!(
        check(&layout(2688), &layout(832), true).unwrap_err(),
        CpuMismatch::XsaveLayout { component: 9 }
    );
}

#[test]
fn every_word_has_at_most_32_names() {
    for word in &FEATURES {
        assert_eq!(word.name(32).split(' ').next(), Some("CPUID"));
    }
}

//! Tests of the configuration format.

use super::*;

const MINIMAL: &str = r#"{
  "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
  "boot-source": {"kernel_image_path": "/k"}
}"#;

fn parse(json: &str) -> Result<MachineConfig, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

fn refused(json: &str) -> String {
    parse(json).expect_err("must be refused")
}

#[test]
fn minimal_is_enough() {
    let config = parse(MINIMAL).unwrap();
    assert_eq!(config.machine.vcpu_count.get(), 1);
    assert_eq!(config.machine.mem_size_mib.bytes(), 128 << 20);
    assert!(config.drives.is_empty() && config.vsock.is_none() && config.readiness.is_none());
}

#[test]
fn full_form_survives_a_round_trip() {
    let json = r#"{
      "version": 1,
      "machine-config": {"vcpu_count": 16, "mem_size_mib": 4096, "huge_pages": "Transparent"},
      "boot-source": {"kernel_image_path": "/k", "boot_args": "quiet", "initrd_paths": ["/a", "/b"]},
      "drives": [{"drive_id": "template", "path_on_host": "/t", "is_read_only": true}],
      "vsock": {"guest_cid": 3, "uds_path": "/run/v"},
      "console": {"log_path": "/run/console.log"},
      "readiness": {"ready_timeout_ms": 5000, "boot_nonce": "000102030405060708090a0b0c0d0eff"}
    }"#;
    let config = parse(json).unwrap();
    assert_eq!(config.readiness.unwrap().boot_nonce.bytes()[15], 0xff);
    assert_eq!(parse(&config.to_json()).unwrap(), config);
}

#[test]
fn unknown_field_is_named() {
    let error = refused(&MINIMAL.replace("\"vcpu_count\"", "\"vcpus\": 2, \"vcpu_count\""));
    assert!(error.contains("unknown field `vcpus`"), "{error}");
}

#[test]
fn numbers_out_of_bounds_are_refused_with_their_bounds() {
    let error = refused(&MINIMAL.replace(": 1,", ": 17,"));
    assert!(
        error.starts_with("vcpu_count must be 1 to 16, not 17"),
        "{error}"
    );
    let error = refused(&MINIMAL.replace(": 1,", ": 0,"));
    assert!(
        error.starts_with("vcpu_count must be 1 to 16, not 0"),
        "{error}"
    );
    let error = refused(&MINIMAL.replace("128", "8"));
    assert!(
        error.starts_with("mem_size_mib must be 16 to 524288 MiB, not 8"),
        "{error}"
    );
    let error = refused(&MINIMAL.replace("128", "4294967424"));
    assert!(error.starts_with("mem_size_mib"), "{error}");
}

#[test]
fn newer_version_is_refused() {
    let error = refused(&MINIMAL.replacen('{', "{\"version\": 2,", 1));
    assert!(
        error.contains("version 2 is newer than this program"),
        "{error}"
    );
}

#[test]
fn boot_args_must_be_printable_and_short() {
    assert!(
        BootArgs::try_from("quiet\n".to_owned())
            .unwrap_err()
            .contains("byte 5 is 0x0a")
    );
    assert!(
        BootArgs::try_from("x".repeat(5000))
            .unwrap_err()
            .contains("5000 bytes")
    );
}

#[test]
fn drives_must_be_distinct_and_named() {
    let drive = |id: &str| DriveConfig {
        drive_id: id.to_owned(),
        path_on_host: "/d".into(),
        is_read_only: false,
    };
    assert!(Drives::try_from(vec![drive("a"), drive("b")]).is_ok());
    let error = Drives::try_from(vec![drive("a"), drive("a")]).unwrap_err();
    assert_eq!(error, "drives[1].drive_id \"a\" is used twice");
    assert!(Drives::try_from(vec![drive("")]).is_err());
    assert!(Drives::try_from(vec![drive("twenty-one-characters")]).is_err());
    let many = (0..=MAX_DRIVES)
        .map(|i| drive(&i.to_string()))
        .collect::<Vec<_>>();
    assert!(Drives::try_from(many).unwrap_err().contains("17 entries"));
}

#[test]
fn reserved_context_identifiers_are_refused() {
    for cid in [0, 1, 2, u64::from(u32::MAX), 1 << 32] {
        assert!(GuestCid::try_from(cid).is_err(), "{cid}");
    }
    assert_eq!(GuestCid::try_from(3), Ok(GuestCid::DEFAULT));
}

#[test]
fn nonce_is_hexadecimal_and_not_printed() {
    let nonce = BootNonce::new([0xa5; 16]);
    assert_eq!(String::from(nonce), "a5".repeat(16));
    assert_eq!(BootNonce::try_from("a5".repeat(16)), Ok(nonce));
    assert!(!format!("{nonce:?}").contains("a5"));
    assert!(BootNonce::try_from("zz".repeat(16)).is_err());
    assert!(BootNonce::try_from("a5".repeat(15)).is_err());
}

#[test]
fn errors_name_the_file() {
    let error = MachineConfig::from_file(Path::new("/nonexistent/machine.json")).unwrap_err();
    assert!(
        error.to_string().contains("/nonexistent/machine.json"),
        "{error}"
    );
}

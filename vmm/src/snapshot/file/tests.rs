use proptest::prelude::*;

use super::*;
use crate::snapshot::testing::{any_machine, machine};

fn decoded(bytes: &[u8]) -> Result<MachineState, SnapshotError> {
    decode(bytes, Path::new("state"))
}

#[test]
fn every_way_of_being_wrong_has_its_error() {
    let good = encode(&machine());
    assert_eq!(decoded(&good).unwrap(), machine());

    assert!(matches!(
        decoded(b"#!/bin/sh"),
        Err(SnapshotError::Foreign { .. })
    ));
    assert!(matches!(decoded(b""), Err(SnapshotError::Truncated { .. })));
    assert!(matches!(
        decoded(&good[..5]),
        Err(SnapshotError::Truncated { .. })
    ));
    assert!(matches!(
        decoded(&good[..good.len() - 1]),
        Err(SnapshotError::Truncated { found, expected, .. })
            if found + 1 == expected && expected == good.len() as u64
    ));
    let longer = [&good[..], b"x"].concat();
    assert!(matches!(
        decoded(&longer),
        Err(SnapshotError::Altered { .. })
    ));
    let mut newer = good.clone();
    newer[8] = 2;
    assert!(matches!(
        decoded(&newer),
        Err(SnapshotError::Newer { version: 2, .. })
    ));
    let mut nonsense = good[..HEADER].to_vec();
    nonsense.extend(b"\xff");
    nonsense[16..24].copy_from_slice(&1_u64.to_le_bytes());
    nonsense[24..32].copy_from_slice(&xxh64(b"\xff").to_le_bytes());
    assert!(matches!(
        decoded(&nonsense),
        Err(SnapshotError::Malformed { .. })
    ));
}

proptest! {
    #[test]
    fn a_machine_comes_back(state in any_machine()) {
        prop_assert_eq!(decoded(&encode(&state)).unwrap(), state);
    }

    #[test]
    fn any_altered_byte_is_found(state in any_machine(), at in any::<prop::sample::Index>(), by in 1..=u8::MAX) {
        let mut file = encode(&state);
        let at = at.index(file.len());
        file[at] ^= by;
        prop_assert!(decoded(&file).is_err());
    }

    #[test]
    fn any_bytes_are_a_machine_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decoded(&bytes);
        let mut framed = vec![0; HEADER];
        framed.extend(&bytes);
        framed[..8].copy_from_slice(&MAGIC);
        framed[8] = 1;
        framed[16..24].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        framed[24..32].copy_from_slice(&xxh64(&bytes).to_le_bytes());
        let is_framed_right = !matches!(
            decoded(&framed),
            Err(SnapshotError::Altered { .. } | SnapshotError::Foreign { .. })
        );
        prop_assert!(is_framed_right);
    }
}

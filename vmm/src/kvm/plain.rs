//! KVM's structures as the bytes that they are in memory, for carrying them in
//! a file. Their layout is KVM's binary interface and does not change.

use std::fmt;

use kvm_bindings::{
    kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_fpu, kvm_irqchip, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use minicbor::decode::{Decode, Decoder, Error as DecodeError};
use minicbor::encode::{Encode, Encoder, Error as EncodeError, Write};

/// A structure of which any bytes are a value.
///
/// # Safety
/// The type has no padding, no pointers, and no bit pattern that is not valid.
pub unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($name:ident: $size:literal,)*) => {
        $(
            // SAFETY: a C structure of integers and arrays and unions of them,
            // in which what aligns the members is a member itself. The size,
            // asserted below, is the sum of the members'.
            unsafe impl Plain for $name {}
            const _: () = assert!(size_of::<$name>() == $size);
        )*
    };
}

plain! {
    kvm_regs: 144,
    kvm_sregs: 312,
    kvm_fpu: 416,
    kvm_xcrs: 392,
    kvm_debugregs: 128,
    kvm_lapic_state: 1024,
    kvm_vcpu_events: 64,
    kvm_mp_state: 4,
    kvm_msr_entry: 16,
    kvm_cpuid_entry2: 40,
    kvm_irqchip: 520,
    kvm_pit_state2: 112,
    kvm_clock_data: 48,
}

fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: the type has no padding, so that all of these bytes are
    // initialised; they are borrowed as long as the values are.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The value that lies in these bytes, of which there must be as many as it has.
fn read<T: Plain>(bytes: &[u8]) -> T {
    assert_eq!(bytes.len(), size_of::<T>(), "the caller has checked it");
    // SAFETY: there are enough bytes, and any of them make a value of the type;
    // the read asks for no alignment.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}

/// One structure, encoded as a string of bytes whose length is checked.
#[derive(Clone, Copy)]
pub struct Bytes<T>(pub T);

impl<T: Plain> PartialEq for Bytes<T> {
    fn eq(&self, other: &Self) -> bool {
        bytes_of(&[self.0]) == bytes_of(&[other.0])
    }
}

impl<T: Plain> Eq for Bytes<T> {}

impl<T> fmt::Debug for Bytes<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", size_of::<T>())
    }
}

impl<C, T: Plain> Encode<C> for Bytes<T> {
    fn encode<W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        encoder.bytes(bytes_of(&[self.0]))?.ok()
    }
}

impl<'b, C, T: Plain> Decode<'b, C> for Bytes<T> {
    fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        let bytes = decoder.bytes()?;
        if bytes.len() == size_of::<T>() {
            Ok(Self(read(bytes)))
        } else {
            Err(wrong_length::<T>(bytes.len()))
        }
    }
}

/// A list of structures, encoded as one string of bytes.
#[derive(Clone, Default)]
pub struct BytesList<T>(pub Vec<T>);

impl<T: Plain> PartialEq for BytesList<T> {
    fn eq(&self, other: &Self) -> bool {
        bytes_of(&self.0) == bytes_of(&other.0)
    }
}

impl<T: Plain> Eq for BytesList<T> {}

impl<T> fmt::Debug for BytesList<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} times {} bytes", self.0.len(), size_of::<T>())
    }
}

impl<C, T: Plain> Encode<C> for BytesList<T> {
    fn encode<W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        encoder.bytes(bytes_of(&self.0))?.ok()
    }
}

impl<'b, C, T: Plain> Decode<'b, C> for BytesList<T> {
    fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        let bytes = decoder.bytes()?;
        let parts = bytes.chunks_exact(size_of::<T>());
        if parts.remainder().is_empty() {
            Ok(Self(parts.map(read).collect()))
        } else {
            Err(wrong_length::<T>(bytes.len()))
        }
    }
}

fn wrong_length<T>(length: usize) -> DecodeError {
    DecodeError::message(format!(
        "{length} bytes where {} has {}",
        std::any::type_name::<T>(),
        size_of::<T>()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trips<T: Plain>(bytes: &[u8]) {
        let value = Bytes(read::<T>(bytes));
        let encoded = minicbor::to_vec(value).unwrap();
        assert!(minicbor::decode::<Bytes<T>>(&encoded).unwrap() == value);
        // A string of bytes that is one byte short.
        let short = minicbor::to_vec(minicbor::bytes::ByteVec::from(bytes[1..].to_vec())).unwrap();
        let error = minicbor::decode::<Bytes<T>>(&short)
            .unwrap_err()
            .to_string();
        assert!(error.contains(&bytes.len().to_string()), "{error}");
    }

    proptest! {
        #[test]
        fn structures_come_back_and_their_length_is_checked(bytes in any::<[u8; 1024]>()) {
            round_trips::<kvm_regs>(&bytes[..144]);
            round_trips::<kvm_sregs>(&bytes[..312]);
            round_trips::<kvm_fpu>(&bytes[..416]);
            round_trips::<kvm_xcrs>(&bytes[..392]);
            round_trips::<kvm_debugregs>(&bytes[..128]);
            round_trips::<kvm_lapic_state>(&bytes);
            round_trips::<kvm_vcpu_events>(&bytes[..64]);
            round_trips::<kvm_mp_state>(&bytes[..4]);
            round_trips::<kvm_irqchip>(&bytes[..520]);
            round_trips::<kvm_pit_state2>(&bytes[..112]);
            round_trips::<kvm_clock_data>(&bytes[..48]);
        }

        #[test]
        fn lists_come_back(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let whole = bytes.len() / 40 * 40;
            let encoded = minicbor::to_vec(minicbor::bytes::ByteVec::from(bytes.clone())).unwrap();
            let decoded = minicbor::decode::<BytesList<kvm_cpuid_entry2>>(&encoded);
            prop_assert_eq!(decoded.is_ok(), whole == bytes.len());
            if let Ok(list) = decoded {
                prop_assert_eq!(bytes_of(&list.0), &bytes[..]);
                prop_assert_eq!(minicbor::to_vec(&list).unwrap(), encoded);
            }
        }
    }
}

//! Numbers with bounds.

use serde::{Deserialize, Serialize};

/// Most block devices of one machine: one interrupt line each, beside vsock's.
pub const MAX_DRIVES: usize = 16;

/// Declares a number that can only be within its bounds.
macro_rules! bounded {
    (
        $(#[$meta:meta])*
        $name:ident($inner:ty), $field:literal, $min:literal..=$max:literal $unit:literal
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "u64", into = "u64")]
        pub struct $name($inner);

        impl $name {
            /// Smallest value.
            pub const MIN: Self = Self($min);
            /// Largest value.
            pub const MAX: Self = Self($max);

            /// The number.
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl TryFrom<u64> for $name {
            type Error = String;

            fn try_from(value: u64) -> Result<Self, String> {
                match <$inner>::try_from(value) {
                    Ok(inner) if ($min..=$max).contains(&inner) => Ok(Self(inner)),
                    _ => Err(format!(
                        concat!($field, " must be ", $min, " to ", $max, $unit, ", not {}"),
                        value
                    )),
                }
            }
        }

        impl From<$name> for u64 {
            fn from(value: $name) -> u64 {
                u64::from(value.0)
            }
        }
    };
}

bounded! {
    /// Number of virtual processors.
    VcpuCount(u8), "vcpu_count", 1..=16 ""
}

bounded! {
    /// Guest memory in MiB. Below the smallest value no Linux kernel boots; at
    /// the largest it still lies within 40-bit physical addresses.
    MemSize(u32), "mem_size_mib", 16..=524_288 " MiB"
}

bounded! {
    /// How long a guest may take to say hello, in milliseconds (up to a day).
    ReadyTimeout(u32), "ready_timeout_ms", 1..=86_400_000 " ms"
}

impl MemSize {
    /// In bytes.
    pub const fn bytes(self) -> u64 {
        (self.0 as u64) << 20
    }
}

//! The comparison of isolation models.
#![cfg(feature = "compare")]

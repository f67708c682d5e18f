//! The comparison of isolation models: models x measurements -> samples ->
//! statistics -> report.
#![cfg(feature = "compare")]

pub mod stats;

//! The comparison of isolation models: models x measurements -> samples ->
//! statistics -> report.
//!
//! [`plan`] says what is done in which order, [`run`] does it with
//! [`models`] and [`measure`], [`result`] keeps every sample, [`stats`] and
//! [`report`] make of them what people read.
#![cfg(feature = "compare")]

pub mod environment;
pub mod measure;
pub mod metric;
pub mod models;
mod name;
pub mod plan;
pub mod progress;
pub mod report;
pub mod result;
pub mod run;
pub mod stats;
#[cfg(test)]
mod testing;

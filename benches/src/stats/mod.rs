//! The statistics of the comparison: non-parametric, and the same for the
//! same samples and seed.
//!
//! Benchmark results are hardly ever normally distributed, so what is reported
//! is the median, with bootstrap intervals (bias-corrected and accelerated
//! where that is defined, percentile else), and the median of the ratios to
//! `process` that were measured in the same block.

mod bootstrap;
mod normal;
mod order;
mod random;
mod slope;

pub use bootstrap::{Estimate, Interval, Method, estimate_median};
pub use normal::{normal_cdf, normal_quantile};
pub use order::{median, quantile};
pub use random::Random;
pub use slope::{Line, least_squares, theil_sen};

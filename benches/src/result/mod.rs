//! Samples and what goes with them: the file that a run leaves, of which
//! everything else (tables, `result.json`, the page) can be made again.
//!
//! `samples.jsonl` has one JSON object a line, flushed one by one: first a
//! [`Header`] (plan, seed, environment), then [`Sample`]s, at the end a
//! [`Footer`]. A run that was interrupted lacks only what came after.

mod sample;
mod store;
mod waterfall;

pub use sample::{DensityPoint, Outside, Sample, Validity};
pub use store::{
    FORMAT, Footer, Header, Recording, StoreError, UnavailableModel, VERSION, Writer, read,
};
pub use waterfall::{EVENTS, Event, Waterfall};

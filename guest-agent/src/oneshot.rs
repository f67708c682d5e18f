//! `insula-agent run`: one VPS, from creation to destruction, in one process.

use std::ffi::OsString;

/// Runs `insula-agent run` with the arguments behind `run`; returns the exit
/// code.
pub fn main(args: impl Iterator<Item = OsString>) -> u8 {
    let _ = args;
    125
}

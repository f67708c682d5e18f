//! `insula`: the command line.
fn main() {}

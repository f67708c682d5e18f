//! `insula-compare`.
fn main() {}

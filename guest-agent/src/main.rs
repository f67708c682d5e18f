//! `insula-agent`.
fn main() {}

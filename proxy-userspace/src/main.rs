//! The binary `setu`.
fn main() {}

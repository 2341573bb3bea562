//! `cargo xtask`: everything that is done to setu, one module per subcommand.
fn main() {}

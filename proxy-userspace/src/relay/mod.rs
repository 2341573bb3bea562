//! Moves a flow's bytes: picks a path, and records why.

mod silence;
pub mod sockmap;
pub mod terminated;
pub(crate) mod userspace;

//! Moves a flow's bytes: picks a path, and records why.

mod silence;
pub mod sockmap;
pub(crate) mod userspace;

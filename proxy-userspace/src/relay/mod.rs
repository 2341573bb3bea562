//! Moves a flow's bytes: picks a path, and records why.

pub mod sockmap;
pub(crate) mod userspace;

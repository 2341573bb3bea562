//! The kernel path: bytes go from socket to socket by an eBPF program, and userspace only watches for the end.
//!
//! One thread, the [`controller`], owns the maps and every flow in them. Workers hand flows over and get them back
//! when something is to be done that the kernel cannot do: forward a FIN, make a sender wait for a slower reader, or
//! carry a flow that it did not take.

mod btf;
mod budget;
mod command;
mod controller;
mod counts;
mod flow;
mod handle;
mod limits;
mod loader;
mod probe;
mod teardown;

pub use btf::VMLINUX;
pub(crate) use command::{Legs, Returned};
pub(crate) use counts::Counts;
pub(crate) use handle::{Handle, Loaded, Running};
pub(crate) use limits::Limits;
pub use loader::LoadError;
pub use probe::probe;

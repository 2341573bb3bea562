//! The wire: a flow whose packets are translated in the kernel from one connection to the other.

mod message;
mod network;

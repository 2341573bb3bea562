//! setu's controller: accepts clients, dials WhatsApp for them, and hands each connection to the kernel.
//!
//! Modules in the order of a connection's way; `docs/architecture.md` walks it.

pub mod addr;
pub mod close_reason;
pub mod config;
mod connection;
pub mod relay;
mod sys;
mod upstream;
mod worker;

//! Serves: the threads, what they share, and the way of one connection.

pub(crate) mod capacity;
pub(crate) mod connection;
pub(crate) mod ports;
pub(crate) mod reserved;
pub(crate) mod shared;
pub(crate) mod worker;

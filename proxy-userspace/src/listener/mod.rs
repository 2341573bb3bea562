//! The sockets that clients connect to.

pub mod bind;

//! What a client's first bytes tell, found out before anything is dialed.
//!
//! The parsers are pure functions over the bytes so far, and monotone: once one has decided, more bytes do not change
//! its mind. [`peek`] feeds them from a socket without taking a byte out, so that what was looked at is still there
//! for whoever the connection is handed to. Nothing here knows what the answer is for: that is routing.

pub mod client_hello;
pub mod first_bytes;
pub mod peek;

pub use client_hello::LIMIT;

//! What the end-to-end tests stand on: the real setu as a child process, and peers that check every byte.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]
#![expect(clippy::missing_panics_doc, reason = "a panic is how a test fails")]

pub mod admin;
pub mod cgroup;
pub mod chat;
pub mod delay;
pub mod dns;
pub mod level;
pub mod machine;
pub mod maps;
pub mod netns;
pub mod network;
pub mod nobody;
pub mod packets;
pub mod peers;
pub mod pins;
pub mod private;
pub mod repair;
pub mod servers;
mod setu;
pub mod terminal;
pub mod tls;

pub use setu::{NOT_PLACED, ONE_SOURCE, Path, Setu, config, front_door, listener, upstream};

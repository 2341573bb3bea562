//! `setu share`: how people get a phone to use this server. Typing an address and two ports into a settings page is
//! where most give up; a link, or the same link as a code to scan, sets everything at once.
//!
//! The link's four parameters are all that WhatsApp knows: `host`, `chatPort`, `mediaPort` and `chatTLS`.

mod cards;
mod files;
mod link;
mod qr;

pub use link::{Link, ShareError, host, link};

//! `setu share`: how people get a phone to use this server. Typing an address and two ports into a settings page is
//! where most give up; a link, or the same link as a code to scan, sets everything at once.
//!
//! The link's four parameters are all that WhatsApp knows: `host`, `chatPort`, `mediaPort` and `chatTLS`.

mod card;
mod error;
mod files;
mod host;
mod link;
mod pdf;
mod qr;

pub(crate) use card::{STYLE as CARD_STYLE, card};
pub use error::{Field, ShareError};
pub use files::{Format, json, write};
pub use host::checked as host;
pub(crate) use host::doubt;
pub use link::{Link, Ports, link};

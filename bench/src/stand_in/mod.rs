//! Stands in for WhatsApp's servers and for those who use setu, on a machine without any other: what the test of the
//! Debian package installs setu between.

mod servers;
mod users;

pub(crate) use servers::run as servers;
pub(crate) use users::run as users;

/// What a phone sends first: routing information, then the header of the protocol. Captured from a client.
pub(crate) const HELLO: [u8; 18] = [
    0x45, 0x44, 0x00, 0x01, 0x00, 0x00, 0x04, 0x08, 0x0d, 0x08, 0x02, 0x57, 0x41, 0x04, 0x02, 0x00, 0x01,
    0x18,
];
/// A name of WhatsApp's media servers, as the app puts it into the SNI.
pub(crate) const MEDIA_HOST: &str = "mmg.whatsapp.net";

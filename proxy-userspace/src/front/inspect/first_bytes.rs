//! Tells what a client speaks from its first bytes: for the gate before the chat servers, and for the port that takes
//! everything.
//!
//! The chat protocol opens with `WA` and two version bytes. Clients that know which data centre they belong to put
//! routing information before that: `ED`, `00 01`, a length of three bytes, and so many bytes.

use crate::front::proxy_protocol::{SIGNATURE_V1, SIGNATURE_V2, Start, starts_with};

const HELLO: &[u8] = b"WA";
const ROUTING: &[u8] = b"ED\x00\x01";
const ROUTING_HEADER: usize = ROUTING.len() + 3;
/// Routing information is waited for up to so many bytes; what is longer is taken for chat on the strength of its
/// header. Up to 8 have been seen, and any number is allowed; a socket that nobody reads takes in about 64 KiB.
const ROUTING_WAIT: usize = 4096;

/// Whether a client speaks the chat protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chat {
    /// More bytes are needed.
    Incomplete,
    /// It does.
    Chat,
    /// It does not.
    Other {
        /// The first byte that excludes it.
        at: usize,
    },
}

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// More bytes are needed.
    Incomplete,
    /// A record of TLS: [`super::client_hello`] reads on.
    Tls,
    /// The chat protocol, in the clear.
    Chat,
    /// A PROXY protocol header: [`crate::front::proxy_protocol`] reads on.
    Proxy,
    /// None of these.
    Other {
        /// The first byte that excludes all of them.
        at: usize,
    },
}

/// Looks for the opening of the chat protocol.
#[must_use]
pub fn chat(bytes: &[u8]) -> Chat {
    let skipped = match bytes {
        [b'E', ..] => match starts_with(bytes, ROUTING) {
            Start::Yes => match bytes.get(ROUTING.len()..ROUTING_HEADER) {
                Some(&[high, middle, low]) => {
                    let len = u32::from_be_bytes([0, high, middle, low]) as usize;
                    if len > ROUTING_WAIT {
                        return Chat::Chat;
                    }
                    ROUTING_HEADER + len
                }
                _ => return Chat::Incomplete,
            },
            Start::SoFar => return Chat::Incomplete,
            Start::No { at } => return Chat::Other { at },
        },
        _ => 0,
    };
    let hello = bytes.get(skipped..).unwrap_or_default();
    let tail = match starts_with(hello, HELLO) {
        Start::Yes => &hello[HELLO.len()..],
        Start::SoFar => return Chat::Incomplete,
        Start::No { at } => return Chat::Other { at: skipped + at },
    };
    // Versions and dictionaries are small numbers (06 03, 05 02, 04 02 and 02 01 have been seen). New ones must not be
    // locked out; text, which is what others send, is.
    match tail.iter().take(2).position(|byte| *byte >= b' ') {
        Some(at) => Chat::Other { at: skipped + HELLO.len() + at },
        None if tail.len() < 2 => Chat::Incomplete,
        None => Chat::Chat,
    }
}

/// Tells the protocols apart.
#[must_use]
pub fn protocol(bytes: &[u8]) -> Protocol {
    match bytes {
        [] => Protocol::Incomplete,
        [0x16] | [0x16, 3] => Protocol::Incomplete,
        [0x16, 3, 0..=4, ..] => Protocol::Tls,
        [0x16, 3, ..] => Protocol::Other { at: 2 },
        [0x16, ..] => Protocol::Other { at: 1 },
        [b'P', ..] => signature(bytes, SIGNATURE_V1),
        [b'\r', ..] => signature(bytes, SIGNATURE_V2),
        _ => match chat(bytes) {
            Chat::Incomplete => Protocol::Incomplete,
            Chat::Chat => Protocol::Chat,
            Chat::Other { at } => Protocol::Other { at },
        },
    }
}

fn signature(bytes: &[u8], signature: &[u8]) -> Protocol {
    match starts_with(bytes, signature) {
        Start::Yes => Protocol::Proxy,
        Start::SoFar => Protocol::Incomplete,
        Start::No { at } => Protocol::Other { at },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::testing::{corpus, monotone};

    #[test]
    fn the_corpus_on_every_prefix() {
        for (file, bytes) in corpus("first_bytes") {
            let expected = match file.as_str() {
                "proxy-v1" | "proxy-v2" => Protocol::Proxy,
                "tls" => Protocol::Tls,
                "tls-major-2" => Protocol::Other { at: 1 },
                "tls-minor-5" => Protocol::Other { at: 2 },
                "http-post" => Protocol::Other { at: 1 },
                "http-propfind" => Protocol::Other { at: 3 },
                "line-ends" => Protocol::Other { at: 4 },
                "text-like-chat" | "text-like-routing" => Protocol::Other { at: 2 },
                "chat-routing-then-other" => Protocol::Other { at: 9 },
                name if name.starts_with("chat-") => Protocol::Chat,
                _ => Protocol::Other { at: 0 },
            };
            assert_eq!(monotone(&bytes, protocol, |it| *it == Protocol::Incomplete), expected, "{file}");
            let is_chat = monotone(&bytes, chat, |it| *it == Chat::Incomplete) == Chat::Chat;
            assert_eq!(is_chat, expected == Protocol::Chat, "{file}");
        }
    }

    #[test]
    fn chat_is_decided_as_early_as_it_can_be() {
        assert_eq!(chat(b"WA\x06"), Chat::Incomplete);
        assert_eq!(chat(b"WA\x06\x03"), Chat::Chat);
        assert_eq!(chat(b"WA "), Chat::Other { at: 2 });
        assert_eq!(chat(b"ED\0\x01\0\0\x01.WA\x06"), Chat::Incomplete);
        assert_eq!(chat(b"ED\0\x01\0\0\x01.X"), Chat::Other { at: 8 });
        assert_eq!(chat(b"ED\0\x02"), Chat::Other { at: 3 });
    }

    #[test]
    fn no_length_of_routing_information_is_refused() {
        for len in [0_u32, 1, 2, 255, 256, 4096, 4097, 65_536, 0xff_ffff] {
            let mut bytes = [ROUTING, &len.to_be_bytes()[1..]].concat();
            let waits = chat(&bytes) == Chat::Incomplete;
            assert_eq!(waits, len as usize <= ROUTING_WAIT);
            bytes.resize(bytes.len() + (len as usize).min(10_000), b'x');
            bytes.extend_from_slice(b"WA\x06\x03");
            assert_eq!(chat(&bytes), Chat::Chat, "{len}");
        }
    }
}

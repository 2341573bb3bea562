//! What must hold for any bytes, one function for each fuzz target.
//!
//! Files of the corpus that are named after a program were captured from it: the first bytes that it sent to a listener
//! on loopback. The others were made by hand. Their meaning stands in the unit tests of each parser.

use setu::front::{
    inspect::{
        client_hello::{self, ClientHello},
        first_bytes::{self, Chat, Protocol},
    },
    proxy_protocol::{self, Command, Parsed},
};

/// Every prefix of short inputs is tried, and about so many of long ones.
const PREFIXES: usize = 64;

/// A target takes any bytes, and panics if something does not hold.
pub type Target = fn(&[u8]);

/// The targets, by name.
pub const TARGETS: [(&str, Target); 3] =
    [("client_hello", client_hello), ("first_bytes", first_bytes), ("proxy_protocol", proxy_protocol)];

/// The parser of the ClientHello.
pub fn client_hello(bytes: &[u8]) {
    let outcome = check_prefixes(bytes, client_hello::parse, |it| matches!(it, ClientHello::Incomplete { .. }));
    match outcome {
        ClientHello::Found(name) => {
            let name = name.as_str();
            assert!((1..254).contains(&name.len()));
            assert!(name.split('.').all(|label| (1..64).contains(&label.len())));
            assert!(!name.bytes().any(|byte| byte.is_ascii_uppercase()));
            assert!(name.parse::<std::net::IpAddr>().is_err());
        }
        ClientHello::NotTls { at } | ClientHello::Malformed { at, .. } => assert!(at <= bytes.len()),
        ClientHello::Incomplete { least } => assert!(least > bytes.len()),
        ClientHello::Absent | ClientHello::IpLiteral => {}
    }
    let tls = first_bytes::protocol(bytes) == Protocol::Tls;
    assert!(!tls || !matches!(client_hello::parse(bytes), ClientHello::NotTls { .. }));
}

/// The parsers of a client's first bytes.
pub fn first_bytes(bytes: &[u8]) {
    let protocol = check_prefixes(bytes, first_bytes::protocol, |it| *it == Protocol::Incomplete);
    if let Protocol::Other { at } = protocol {
        assert!(at < bytes.len());
    }
    let chat = check_prefixes(bytes, first_bytes::chat, |it| *it == Chat::Incomplete);
    if let Chat::Other { at } = chat {
        assert!(at < bytes.len());
    }
    assert_eq!(chat == Chat::Chat, protocol == Protocol::Chat);
}

/// The codec of the PROXY protocol.
pub fn proxy_protocol(bytes: &[u8]) {
    match check_prefixes(bytes, proxy_protocol::parse, |it| *it == Parsed::Incomplete) {
        Parsed::Incomplete => assert!(bytes.len() < 4096),
        Parsed::Malformed { at, .. } => assert!(at < bytes.len()),
        Parsed::Header(header) => {
            assert!(header.len <= bytes.len());
            // What is before the header's end decides alone.
            assert_eq!(proxy_protocol::parse(&bytes[..header.len]), Parsed::Header(header));
            if let Command::Proxied { source, destination } = header.command {
                for encode in [proxy_protocol::encode_v1, proxy_protocol::encode_v2] {
                    let encoded = encode(source, destination);
                    let Parsed::Header(again) = proxy_protocol::parse(&encoded) else {
                        panic!("not a header: {encoded:?}");
                    };
                    let Command::Proxied { source: from, destination: to } = again.command else {
                        panic!("no addresses: {encoded:?}");
                    };
                    assert_eq!(again.len, encoded.len());
                    assert_eq!(from.ip().to_canonical(), source.ip().to_canonical());
                    assert_eq!(to.ip().to_canonical(), destination.ip().to_canonical());
                    assert_eq!((from.port(), to.port()), (source.port(), destination.port()));
                }
            }
        }
    }
}

/// Parses, after making sure that no prefix says anything else, unless that it is one.
fn check_prefixes<T: PartialEq + std::fmt::Debug>(
    bytes: &[u8],
    parse: impl Fn(&[u8]) -> T,
    is_incomplete: impl Fn(&T) -> bool,
) -> T {
    let outcome = parse(bytes);
    let mut decided = false;
    for len in (0..bytes.len()).step_by(1 + bytes.len() / PREFIXES) {
        let early = parse(&bytes[..len]);
        if is_incomplete(&early) {
            assert!(!decided, "undecided again at {len}");
        } else {
            assert_eq!(early, outcome, "another decision at {len}");
            decided = true;
        }
    }
    outcome
}

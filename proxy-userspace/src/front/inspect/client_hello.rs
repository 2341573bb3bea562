//! The server name in a TLS ClientHello, found without terminating TLS: a media connection's real destination stands
//! nowhere else.
//!
//! The hello is read strictly in order, straight out of the records that carry it, and judged when it is complete. A
//! second name anywhere in it would make setu and the server disagree about the destination, so that an early answer
//! would be a guess. Extensions other than `server_name` are skipped: GREASE and post-quantum key shares need no care,
//! and of an encrypted hello (ECH) the outer name counts.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

/// Bytes of a client that are looked at before a decision, at most: room for any hello that clients send.
pub const LIMIT: usize = 64 * 1024;

/// Records that a hello may come in: one of 2 KiB, more than any client sends, may have a record for each byte. More would
/// cost more to read than they say.
const RECORDS: usize = 2048;
/// A record's fragment, at most (RFC 8446, section 5.1).
const RECORD_MAX: usize = 1 << 14;
const RECORD_HEADER: usize = 5;
const CONTENT_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: usize = 1;
const SERVER_NAME: usize = 0;
const HOST_NAME: usize = 0;
/// A name's length in the DNS without the final dot, at most (RFC 1035, section 3.1).
const NAME_MAX: usize = 253;

/// What the first bytes say about the server name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientHello {
    /// The hello has not ended yet.
    Incomplete {
        /// Bytes from the first on that it has at least: before they are there no look can say more.
        least: usize,
    },
    /// A hello for this name.
    Found(ServerName),
    /// A hello that names no server.
    Absent,
    /// A hello that names an address, or a number that resolvers take for one. RFC 6066 forbids it, no allow-list can
    /// hold it, and it must never be dialed. A server of TLS may go on as if there was no name, as rustls does.
    IpLiteral,
    /// These are no TLS records of a handshake.
    NotTls {
        /// The first byte that excludes it.
        at: usize,
    },
    /// TLS, but not a hello that a server could answer. The hello of SSL 2, which RFC 6176 forbids, is one of these.
    Malformed {
        /// Where the offending byte, length or name is.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },
}

/// A host name as it can stand in an allow-list: lower case, without the final dot, never an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerName(Box<str>);

impl ServerName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Reads a client's first bytes.
#[must_use]
pub fn parse(bytes: &[u8]) -> ClientHello {
    read(bytes).unwrap_or_else(|early| early)
}

/// Either a value, or the outcome that reading ends with.
type Step<T> = Result<T, ClientHello>;

fn malformed<T>(at: usize, what: &'static str) -> Step<T> {
    Err(ClientHello::Malformed { at, what })
}

fn read(bytes: &[u8]) -> Step<ClientHello> {
    // A hello of SSL 2 has a length of 15 bits with the highest bit set before its type. No TLS record begins so.
    match bytes {
        [0x80..=0xff] | [0x80..=0xff, _] => return Err(ClientHello::Incomplete { least: 3 }),
        [0x80..=0xff, _, 1, ..] => return malformed(0, "a hello of SSL 2"),
        _ => {}
    }
    let mut message = Message { bytes, at: 0, record: 0, records: 0, read: 0, end: 1 };
    if message.number(1, LIMIT)? != CLIENT_HELLO {
        return malformed(message.at - 1, "not a ClientHello");
    }
    let end = message.block(3, LIMIT)?;
    message.end = end;
    if message.number(2, end)? >> 8 != 3 {
        return malformed(message.at - 1, "the version is not one of TLS");
    }
    // The random.
    message.skip(32, end)?;
    let session = message.block(1, end)?;
    message.skip_to(session)?;
    let ciphers = message.block(2, end)?;
    message.skip_to(ciphers)?;
    let compression = message.block(1, end)?;
    message.skip_to(compression)?;
    if message.read == end {
        return Ok(ClientHello::Absent);
    }
    let extensions = message.block(2, end)?;
    if extensions != end {
        return malformed(message.at, "the extensions do not end with the hello");
    }
    let mut name = None;
    while message.read < extensions {
        let kind = message.number(2, extensions)?;
        let data = message.block(2, extensions)?;
        if kind != SERVER_NAME {
            message.skip_to(data)?;
        } else if name.is_none() {
            name = Some(message.server_name(data)?);
        } else {
            return malformed(message.at, "a second list of server names");
        }
    }
    Ok(name.unwrap_or(ClientHello::Absent))
}

/// A handshake message in the records that carry it. Positions in the message count its own bytes, without headers.
struct Message<'a> {
    bytes: &'a [u8],
    /// Where in `bytes` the next one is.
    at: usize,
    /// What is left of the current record.
    record: usize,
    /// How many there were.
    records: usize,
    /// Bytes of the message that were read.
    read: usize,
    /// Where the message ends, as far as that is known.
    end: usize,
}

impl Message<'_> {
    /// The bytes are at an end, and the message is not.
    fn incomplete<T>(&self) -> Step<T> {
        // What is left may all be in the current record.
        let least = self.at + self.end.saturating_sub(self.read);
        Err(ClientHello::Incomplete { least: least.max(self.bytes.len() + 1) })
    }

    /// Enters the next record if the current one has ended.
    fn open_record(&mut self) -> Step<()> {
        if self.record > 0 {
            return Ok(());
        }
        let first = self.at == 0;
        let header = &self.bytes[self.at..];
        let bad = |offset, what| {
            if first { Err(ClientHello::NotTls { at: offset }) } else { malformed(self.at + offset, what) }
        };
        match header {
            // Nothing may stand between the records of one message (RFC 8446, section 5.1).
            [kind, ..] if *kind != CONTENT_HANDSHAKE => bad(0, "not a handshake record"),
            [_, major, ..] if *major != 3 => bad(1, "the record's version is not one of TLS"),
            [_, _, minor, ..] if *minor > 4 => bad(2, "the record's version is not one of TLS"),
            [_, _, _, high, low, ..] => {
                let len = usize::from(u16::from_be_bytes([*high, *low]));
                // An empty record carries nothing on; RFC 8446 forbids it.
                if len == 0 || len > RECORD_MAX {
                    return malformed(self.at + 3, "a record's length");
                }
                self.records += 1;
                if self.records > RECORDS {
                    // As a hello that is too long, and judged as one.
                    return Err(ClientHello::Incomplete { least: LIMIT + 1 });
                }
                self.at += RECORD_HEADER;
                self.record = len;
                Ok(())
            }
            _ => self.incomplete(),
        }
    }

    /// Reads a number of so many bytes, which must end before `end`.
    fn number(&mut self, width: usize, end: usize) -> Step<usize> {
        if end - self.read < width {
            return malformed(self.at, "cut short");
        }
        let mut number = 0;
        for _ in 0..width {
            self.open_record()?;
            let Some(byte) = self.bytes.get(self.at) else { return self.incomplete() };
            number = number << 8 | usize::from(*byte);
            self.pass(1);
        }
        Ok(number)
    }

    /// Reads a block's length, a number of so many bytes, and returns where the block ends: not after `end`.
    fn block(&mut self, width: usize, end: usize) -> Step<usize> {
        let len = self.number(width, end)?;
        if len > end - self.read {
            return malformed(self.at - 1, "a length beyond what holds it");
        }
        Ok(self.read + len)
    }

    fn skip(&mut self, count: usize, end: usize) -> Step<()> {
        if end - self.read < count {
            return malformed(self.at, "cut short");
        }
        self.skip_to(self.read + count)
    }

    fn skip_to(&mut self, end: usize) -> Step<()> {
        while self.read < end {
            self.open_record()?;
            let here = self.record.min(self.bytes.len() - self.at).min(end - self.read);
            if here == 0 {
                return self.incomplete();
            }
            self.pass(here);
        }
        Ok(())
    }

    fn pass(&mut self, count: usize) {
        self.at += count;
        self.record -= count;
        self.read += count;
    }

    /// Reads the extension's data: a list, which holds exactly one name. RFC 6066 allows one of each type, and no
    /// type but the host name was ever defined.
    fn server_name(&mut self, end: usize) -> Step<ClientHello> {
        if self.block(2, end)? != end {
            return malformed(self.at, "the list of server names does not fill its extension");
        }
        if self.number(1, end)? != HOST_NAME {
            return malformed(self.at - 1, "a server name that is no host name");
        }
        if self.block(2, end)? != end {
            return malformed(self.at, "more than one server name");
        }
        let (from, len) = (self.at, end - self.read);
        // The final dot is one more.
        if len == 0 || len > NAME_MAX + 1 {
            return malformed(from, "the server name's length");
        }
        let mut name = String::with_capacity(len);
        while self.read < end {
            let byte = self.number(1, end)?.to_le_bytes()[0];
            // Colons are those of IPv6.
            if !byte.is_ascii_alphanumeric() && !b"-_.:".contains(&byte) {
                return malformed(self.at - 1, "a byte that no host name has");
            }
            name.push(byte.to_ascii_lowercase().into());
        }
        if name.ends_with('.') {
            name.pop();
        }
        if is_address(&name) {
            return Ok(ClientHello::IpLiteral);
        }
        let label = |label: &str| (1..64).contains(&label.len()) && !label.contains(':');
        if name.len() > NAME_MAX || !name.split('.').all(label) {
            return malformed(from, "the server name is not a host name");
        }
        Ok(ClientHello::Found(ServerName(name.into())))
    }
}

/// Whether it is an address, or resolvers would take it for one: they read `127.1` and `0x7f.1` as inet_aton(3) does.
/// No top-level domain is a number (RFC 3696, section 2).
fn is_address(name: &str) -> bool {
    let number = |last: &str| {
        let hexadecimal =
            last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()));
        hexadecimal || (!last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()))
    };
    name.parse::<Ipv4Addr>().is_ok()
        || name.parse::<Ipv6Addr>().is_ok()
        || name.rsplit('.').next().is_some_and(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::front::testing::{corpus, monotone};

    fn describe(outcome: &ClientHello) -> String {
        match outcome {
            ClientHello::Incomplete { .. } => "incomplete".into(),
            ClientHello::Found(name) => name.to_string(),
            ClientHello::Absent => "no name".into(),
            ClientHello::IpLiteral => "address".into(),
            ClientHello::NotTls { at } => format!("no TLS at {at}"),
            ClientHello::Malformed { at, what } => format!("at {at}: {what}"),
        }
    }

    fn is_incomplete(outcome: &ClientHello) -> bool {
        matches!(outcome, ClientHello::Incomplete { .. })
    }

    #[test]
    fn captured_hellos_on_every_prefix() {
        let mut got = String::new();
        for (file, bytes) in corpus("client_hello") {
            let outcome = monotone(&bytes, parse, is_incomplete);
            got += &format!("{file}: {}\n", describe(&outcome));
        }
        assert_eq!(got, EXPECTED);
    }

    const EXPECTED: &str = "\
address-hexadecimal: address
address-ipv6: address
address-short: address
bad-after-extensions: at 54: the extensions do not end with the hello
bad-alert-between: at 25: not a handshake record
bad-colon: at 63: the server name is not a host name
bad-empty-extension: at 58: cut short
bad-empty-label: at 63: the server name is not a host name
bad-empty-list: at 60: cut short
bad-empty-name: at 63: the server name's length
bad-empty-record: at 3: a record's length
bad-extension-cut: at 56: cut short
bad-extension-too-long: at 57: a length beyond what holds it
bad-list-length: at 60: the list of server names does not fill its extension
bad-long-label: at 63: the server name is not a host name
bad-long-name: at 63: the server name's length
bad-long-record: at 3: a record's length
bad-message-length: at 8: a length beyond what holds it
bad-name-type: at 60: a server name that is no host name
bad-nul: at 79: a byte that no host name has
bad-only-dot: at 63: the server name is not a host name
bad-record-version-between: at 26: the record's version is not one of TLS
bad-server-hello: at 5: not a ClientHello
bad-session: at 43: a length beyond what holds it
bad-short-message: at 11: cut short
bad-ssl2: at 0: a hello of SSL 2
bad-two-final-dots: at 63: the server name is not a host name
bad-two-lists: at 83: a second list of server names
bad-two-names: at 63: more than one server name
bad-utf8: at 63: a byte that no host name has
bad-version: at 10: the version is not one of TLS
chromium-post-quantum: mmg.whatsapp.net
curl-h2: mmg.whatsapp.net
gnutls: media.fmad3-8.fna.whatsapp.net
gnutls-no-name: no name
made-grease: mmg.whatsapp.net
made-no-extensions: no name
made-one-byte-records: mmg.whatsapp.net
openssl-address: address
openssl-no-name: no name
openssl-split-records: mmg.whatsapp.net
openssl-tls10-only: media-fra3-1.cdn.whatsapp.net
openssl-tls12-only: mmg-fallback.whatsapp.net
openssl-tls13: mmg.whatsapp.net
openssl-trailing-dot: mmg.whatsapp.net
openssl-upper-case: mmg.whatsapp.net
other-high-byte: no TLS at 0
other-http: no TLS at 0
other-record-minor: no TLS at 2
other-record-version: no TLS at 1
python: mmg.whatsapp.net
";

    /// The handshake message of a captured hello, without record headers.
    fn message(file: &str) -> Vec<u8> {
        let files = corpus("client_hello");
        let (_, mut rest) =
            files.iter().find(|(name, _)| name == file).map(|(n, b)| (n, b.as_slice())).unwrap();
        let mut message = Vec::new();
        while let [_, _, _, high, low, fragment @ ..] = rest {
            let len = usize::from(u16::from_be_bytes([*high, *low]));
            message.extend_from_slice(&fragment[..len]);
            rest = &fragment[len..];
        }
        message
    }

    /// Puts a handshake message into records of these sizes, over and over.
    fn records(message: &[u8], sizes: &[usize]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (mut rest, mut sizes) = (message, sizes.iter().cycle());
        while !rest.is_empty() {
            let (fragment, more) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
            bytes.extend_from_slice(&[CONTENT_HANDSHAKE, 3, 1]);
            bytes.extend_from_slice(&u16::try_from(fragment.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(fragment);
            rest = more;
        }
        bytes
    }

    /// A hello with so much padding before its name.
    fn padded(padding: u16) -> Vec<u8> {
        let grease = message("made-grease");
        let mut extensions = [[0, 21], padding.to_be_bytes()].concat();
        extensions.resize(extensions.len() + usize::from(padding), 0);
        // The list of names is the last extension there.
        extensions.extend_from_slice(&grease[grease.len() - 25..]);
        let mut hello = message("made-no-extensions");
        hello.extend_from_slice(&u16::try_from(extensions.len()).unwrap().to_be_bytes());
        hello.extend_from_slice(&extensions);
        let len = u32::try_from(hello.len() - 4).unwrap().to_be_bytes();
        hello[1..4].copy_from_slice(&len[1..]);
        hello
    }

    #[test]
    fn a_hello_longer_than_a_record() {
        let bytes = records(&padded(30_000), &[RECORD_MAX]);
        for cut in [5, 20_000, bytes.len() - 1] {
            assert!(is_incomplete(&parse(&bytes[..cut])));
        }
        assert_eq!(describe(&parse(&bytes)), "mmg.whatsapp.net");
    }

    #[test]
    fn what_is_missing_is_known_from_the_length_on() {
        let bytes = records(&message("gnutls"), &[RECORD_MAX]);
        let least = |len| match parse(&bytes[..len]) {
            ClientHello::Incomplete { least } => least,
            decided => panic!("{decided:?}"),
        };
        assert_eq!([0, 1, 8].map(least), [1, 2, 9]);
        assert_eq!([9, 100, bytes.len() - 1].map(least), [bytes.len(); 3]);
    }

    #[test]
    fn a_hello_in_too_many_records_is_too_long() {
        let too_long = ClientHello::Incomplete { least: LIMIT + 1 };
        let bytes = records(&padded(u16::try_from(RECORDS).unwrap()), &[1]);
        assert_eq!(parse(&bytes), too_long);
        assert_ne!(parse(&bytes[..RECORDS * (RECORD_HEADER + 1)]), too_long);
    }

    proptest! {
        /// How a hello is cut into records does not matter.
        #[test]
        fn any_records(sizes in proptest::collection::vec(1..600usize, 1..20), file in 0..4usize) {
            let file = ["chromium-post-quantum", "gnutls", "openssl-upper-case", "made-grease"][file];
            let bytes = records(&message(file), &sizes);
            let outcome = parse(&bytes);
            prop_assert!(matches!(outcome, ClientHello::Found(_)));
            for len in 0..bytes.len() {
                let ClientHello::Incomplete { least } = parse(&bytes[..len]) else {
                    return Err(TestCaseError::fail("decided before the end"));
                };
                prop_assert!(len < least && least <= bytes.len(), "{least} of {} after {len}", bytes.len());
            }
        }

        /// A changed byte never makes a decision waver.
        #[test]
        fn any_byte_changed(at in 0..1_000usize, to: u8, file in 0..3usize) {
            let mut bytes = records(&message(["gnutls", "openssl-upper-case", "made-grease"][file]), &[100]);
            let at = at % bytes.len();
            bytes[at] = to;
            monotone(&bytes, parse, is_incomplete);
        }
    }
}

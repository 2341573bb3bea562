//! The PROXY protocol, both versions, both directions: how a load balancer before setu tells whose connection it is,
//! and how setu tells the upstream. Specified in HAProxy's `doc/proxy-protocol.txt`.
//!
//! A header holds a client's address. It is kept out of logs by type: what holds one has no address in its `Debug`.

use std::{
    fmt,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use zeroize::Zeroizing;

/// Version 1 begins so.
pub(crate) const SIGNATURE_V1: &[u8] = b"PROXY ";
/// Version 2 begins so.
pub(crate) const SIGNATURE_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A line of version 1 with its end, at most: the specification's bound.
const V1_MAX: usize = 107;
/// The fixed part of version 2.
const V2_HEADER: usize = 16;
/// A header of version 2 with its addresses and TLVs, at most. The length field allows 64 KiB; what load
/// balancers send is a few hundred bytes.
const V2_MAX: usize = 4096;
/// Addresses and ports of version 2, by family.
const V2_INET: usize = 12;
const V2_INET6: usize = 36;
const V2_UNIX: usize = 216;
/// The type of the TLV that holds the header's CRC32c.
const TLV_CRC32C: u8 = 3;

/// What the first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// The header has not ended yet.
    Incomplete,
    /// A header.
    Header(Header),
    /// This is no header.
    Malformed {
        /// Where the offending byte or field is.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },
}

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its bytes; the client's own follow.
    pub len: usize,
    /// What it says.
    pub command: Command,
}

/// What a header says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// The proxy speaks for itself: a health check, say.
    Local,
    /// The proxy speaks for a client.
    Proxied {
        /// The client.
        source: SocketAddr,
        /// Where the client connected to.
        destination: SocketAddr,
    },
    /// The proxy speaks for a client whose address is not known, or is not one of TCP.
    Unknown,
}

impl fmt::Debug for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Local => "Local",
            Self::Proxied { .. } => "Proxied",
            Self::Unknown => "Unknown",
        })
    }
}

/// Reads a header of either version.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed {
    let is_v1 = bytes.first() == SIGNATURE_V1.first();
    match starts_with(bytes, if is_v1 { SIGNATURE_V1 } else { SIGNATURE_V2 }) {
        Start::Yes => {
            let header = if is_v1 { parse_v1(bytes) } else { parse_v2(bytes) };
            header.map_or_else(|early| early, Parsed::Header)
        }
        Start::SoFar => Parsed::Incomplete,
        Start::No { at } => Parsed::Malformed { at, what: "not the signature" },
    }
}

/// How bytes that may be cut short compare to an opening.
pub(crate) enum Start {
    /// It is all there.
    Yes,
    /// It is cut short.
    SoFar,
    /// It is another.
    No {
        /// The first byte that differs.
        at: usize,
    },
}

pub(crate) fn starts_with(bytes: &[u8], opening: &[u8]) -> Start {
    match bytes.iter().zip(opening).position(|(byte, expected)| byte != expected) {
        Some(at) => Start::No { at },
        None if bytes.len() < opening.len() => Start::SoFar,
        None => Start::Yes,
    }
}

/// Either a value, or the outcome that reading ends with.
type Step<T> = Result<T, Parsed>;

fn malformed<T>(at: usize, what: &'static str) -> Step<T> {
    Err(Parsed::Malformed { at, what })
}

/// `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443` and CR LF; the signature was seen.
fn parse_v1(bytes: &[u8]) -> Step<Header> {
    let line = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = line.iter().position(|byte| b"\r\n".contains(byte)) else {
        return if line.len() < V1_MAX { Err(Parsed::Incomplete) } else { malformed(V1_MAX - 1, "no end") };
    };
    match line[end..] {
        [b'\r', b'\n', ..] => {}
        [b'\r'] if line.len() < V1_MAX => return Err(Parsed::Incomplete),
        _ => return malformed(end, "the line does not end with CR LF"),
    }
    let mut fields = Fields { line: &line[..end], at: SIGNATURE_V1.len() };
    let (at, family) = fields.next();
    let len = end + 2;
    let (source, destination) = match family {
        b"TCP4" => (fields.address::<Ipv4Addr>()?, fields.address::<Ipv4Addr>()?),
        b"TCP6" => (fields.address::<Ipv6Addr>()?, fields.address::<Ipv6Addr>()?),
        // Whatever follows is to be ignored.
        b"UNKNOWN" => return Ok(Header { len, command: Command::Unknown }),
        _ => return malformed(at, "not one of TCP4, TCP6 and UNKNOWN"),
    };
    let (source_port, destination_port) = (fields.port()?, fields.port()?);
    if fields.at <= end {
        return malformed(fields.at - 1, "more than two addresses and two ports");
    }
    let command = Command::Proxied {
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
    };
    Ok(Header { len, command })
}

/// Fields with exactly one space between them.
struct Fields<'a> {
    line: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// The next field and where it is; empty after the last.
    fn next(&mut self) -> (usize, &'a [u8]) {
        let at = self.at;
        let rest = self.line.get(at..).unwrap_or_default();
        let field = rest.split(|byte| *byte == b' ').next().unwrap_or_default();
        self.at += field.len() + 1;
        (at, field)
    }

    fn address<T: std::str::FromStr + Into<IpAddr>>(&mut self) -> Step<IpAddr> {
        let (at, field) = self.next();
        let address = str::from_utf8(field).ok().and_then(|text| text.parse::<T>().ok());
        address.map_or_else(|| malformed(at, "not an address of that family"), |address| Ok(address.into()))
    }

    fn port(&mut self) -> Step<u16> {
        let (at, field) = self.next();
        // `parse` takes a sign and leading zeros, the specification does not.
        let plain = field == b"0" || field.first().is_some_and(|first| (b'1'..=b'9').contains(first));
        let port = str::from_utf8(field).ok().filter(|_| plain).and_then(|text| text.parse().ok());
        port.map_or_else(|| malformed(at, "not a port"), Ok)
    }
}

/// The binary header; the signature was seen.
fn parse_v2(bytes: &[u8]) -> Step<Header> {
    let Some(&[version, family, high, low]) = bytes.get(SIGNATURE_V2.len()..V2_HEADER) else {
        return Err(Parsed::Incomplete);
    };
    let len = V2_HEADER + usize::from(u16::from_be_bytes([high, low]));
    if version & 0xf0 != 0x20 || version & 0x0f > 1 {
        return malformed(12, "neither LOCAL nor PROXY of version 2");
    }
    if len > V2_MAX {
        return malformed(14, "longer than any that is of use");
    }
    let header = bytes.get(..len).ok_or(Parsed::Incomplete)?;
    let body = &header[V2_HEADER..];
    // The family of LOCAL, and all that follows, is to be ignored.
    if version == 0x20 {
        return Ok(Header { len, command: Command::Local });
    }
    let addresses = match family {
        0x00 => return Ok(Header { len, command: Command::Unknown }),
        0x10..=0x12 => V2_INET,
        0x20..=0x22 => V2_INET6,
        0x30..=0x32 => V2_UNIX,
        _ => return malformed(13, "no such family or transport"),
    };
    if body.len() < addresses {
        return malformed(14, "too short for its addresses");
    }
    check_tlvs(header, V2_HEADER + addresses)?;
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let (source, destination): (IpAddr, IpAddr) = match family {
        0x11 => (octets::<4>(body, 0).into(), octets::<4>(body, 4).into()),
        0x21 => (octets::<16>(body, 0).into(), octets::<16>(body, 16).into()),
        // Not TCP.
        _ => return Ok(Header { len, command: Command::Unknown }),
    };
    let command = Command::Proxied {
        source: SocketAddr::new(source, port(addresses - 4)),
        destination: SocketAddr::new(destination, port(addresses - 2)),
    };
    Ok(Header { len, command })
}

/// Copies an address out; `at` and the length were checked.
fn octets<const N: usize>(body: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|index| body[at + index])
}

/// Walks over the TLVs, which fill the rest of the header: type, length, value. A checksum that is there must be right.
fn check_tlvs(header: &[u8], mut at: usize) -> Step<()> {
    while at < header.len() {
        let Some(&[kind, high, low]) = header.get(at..at + 3) else {
            return malformed(at, "a TLV cut short");
        };
        let value = at + 3;
        let end = value + usize::from(u16::from_be_bytes([high, low]));
        let Some(bytes) = header.get(value..end) else {
            return malformed(at + 1, "a TLV longer than its header");
        };
        if kind == TLV_CRC32C {
            if bytes.len() != 4 {
                return malformed(at + 1, "a checksum that is not of 4 bytes");
            }
            // It is over the whole header, with zeros in its own place.
            let zeroed = header[..value].iter().chain(&[0; 4]).chain(&header[end..]);
            if bytes != crc32c(zeroed).to_be_bytes() {
                return malformed(value, "a wrong checksum");
            }
        }
        at = end;
    }
    Ok(())
}

/// Castagnoli's CRC (RFC 9260, appendix A), bit by bit: a header is short, and few have one.
fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    !bytes.fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

/// A header of version 1 for a client that connected to `destination`.
#[must_use]
pub fn encode_v1(source: SocketAddr, destination: SocketAddr) -> Zeroizing<Vec<u8>> {
    let (family, from, to) = match same_family(source.ip(), destination.ip()) {
        Pair::V4(from, to) => ("TCP4", IpAddr::from(from), IpAddr::from(to)),
        Pair::V6(from, to) => ("TCP6", from.into(), to.into()),
    };
    // As long as can be from the beginning: where it grew it would leave a part behind.
    let mut header = Zeroizing::new(Vec::with_capacity(V1_MAX));
    // Writing to a vector cannot fail.
    let _ = write!(header, "PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port());
    header
}

/// A header of version 2 for a client that connected to `destination`.
#[must_use]
pub fn encode_v2(source: SocketAddr, destination: SocketAddr) -> Zeroizing<Vec<u8>> {
    let mut header = Zeroizing::new(Vec::with_capacity(V2_HEADER + V2_INET6));
    header.extend_from_slice(SIGNATURE_V2);
    match same_family(source.ip(), destination.ip()) {
        Pair::V4(from, to) => {
            header.extend_from_slice(&[0x21, 0x11, 0, V2_INET as u8]);
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
        }
        Pair::V6(from, to) => {
            header.extend_from_slice(&[0x21, 0x21, 0, V2_INET6 as u8]);
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
        }
    }
    header.extend_from_slice(&source.port().to_be_bytes());
    header.extend_from_slice(&destination.port().to_be_bytes());
    header
}

/// Two addresses of one family.
enum Pair {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

/// Neither version has a form for two families. IPv4 it is where both can be: a socket that takes both families knows
/// its IPv4 clients by mapped addresses. Else both are IPv6, one of them mapped, as HAProxy does it
/// (`make_proxy_line_v1`, src/connection.c of 2.6).
fn same_family(source: IpAddr, destination: IpAddr) -> Pair {
    let mapped = |ip| match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    match (source.to_canonical(), destination.to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Pair::V4(source, destination),
        (source, destination) => Pair::V6(mapped(source), mapped(destination)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::front::testing::{corpus, monotone};

    fn describe(bytes: &[u8], parsed: &Parsed) -> String {
        match parsed {
            Parsed::Incomplete => "incomplete".into(),
            Parsed::Malformed { at, what } => format!("at {at}: {what}"),
            Parsed::Header(header) => {
                let rest = bytes.len() - header.len;
                match header.command {
                    Command::Local => format!("local, then {rest}"),
                    Command::Unknown => format!("unknown, then {rest}"),
                    Command::Proxied { source, destination } => {
                        format!("{} to {}, then {rest}", source.ip(), destination.ip())
                    }
                }
            }
        }
    }

    #[test]
    fn captured_headers_on_every_prefix() {
        let mut got = String::new();
        for (file, bytes) in corpus("proxy_protocol") {
            let parsed = monotone(&bytes, parse, |it| *it == Parsed::Incomplete);
            got += &format!("{file}: {}\n", describe(&bytes, &parsed));
        }
        assert_eq!(got, EXPECTED);
    }

    const EXPECTED: &str = "\
haproxy-v1-check: 127.0.0.1 to 127.0.0.1, then 0
haproxy-v1-ipv4: 127.0.0.1 to 127.0.0.1, then 4
haproxy-v1-ipv6: ::1 to ::1, then 4
haproxy-v2-ipv4: 127.0.0.1 to 127.0.0.1, then 4
haproxy-v2-ipv6: ::1 to ::1, then 4
haproxy-v2-local-check: local, then 0
haproxy-v2-tlvs-crc32c: 127.0.0.1 to 127.0.0.1, then 4
other-http: at 1: not the signature
other-tls: at 0: not the signature
v1-bare-line-feed: at 34: the line does not end with CR LF
v1-leading-zero: at 31: not a port
v1-longest: ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff to ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff, then 0
v1-mixed: ::ffff:192.0.2.1 to 2001:db8::2, then 0
v1-other-protocol: at 6: not one of TCP4, TCP6 and UNKNOWN
v1-port-too-big: at 31: not a port
v1-too-long: at 106: no end
v1-trailing-field: at 34: more than two addresses and two ports
v1-two-spaces: at 11: not an address of that family
v1-unknown-with-rest: unknown, then 4
v1-wrong-family: at 11: not an address of that family
v2-checksum-empty: at 41: a checksum that is not of 4 bytes
v2-datagram: unknown, then 0
v2-family: at 13: no such family or transport
v2-local-with-rest: local, then 0
v2-tlv-cut: at 28: a TLV cut short
v2-tlv-too-long: at 29: a TLV longer than its header
v2-too-long: at 14: longer than any that is of use
v2-too-short: at 14: too short for its addresses
v2-unix: unknown, then 0
v2-unspec: unknown, then 0
v2-version-3: at 12: neither LOCAL nor PROXY of version 2
v2-wrong-checksum: at 31: a wrong checksum
";

    #[test]
    fn what_is_sent() {
        let v1 = |source: &str, destination: &str| {
            let header = encode_v1(source.parse().unwrap(), destination.parse().unwrap());
            String::from_utf8(header.to_vec()).unwrap()
        };
        assert_eq!(v1("192.0.2.1:1", "192.0.2.2:443"), "PROXY TCP4 192.0.2.1 192.0.2.2 1 443\r\n");
        assert_eq!(v1("[2001:db8::1]:1", "[::1]:443"), "PROXY TCP6 2001:db8::1 ::1 1 443\r\n");
        assert_eq!(v1("[::ffff:192.0.2.1]:1", "192.0.2.2:443"), "PROXY TCP4 192.0.2.1 192.0.2.2 1 443\r\n");
        assert_eq!(
            v1("192.0.2.1:1", "[2001:db8::2]:443"),
            "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1 443\r\n"
        );
        let v2 = encode_v2("192.0.2.1:258".parse().unwrap(), "192.0.2.2:443".parse().unwrap());
        let expected =
            [SIGNATURE_V2, b"\x21\x11\0\x0c", &[192, 0, 2, 1], &[192, 0, 2, 2], &[1, 2], &[1, 187]];
        assert_eq!(*v2, expected.concat());
    }

    #[test]
    fn no_address_is_shown() {
        let parsed = parse(b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n");
        let shown = format!("{parsed:?}");
        assert!(shown.contains("Proxied") && !shown.contains("192") && !shown.contains("56324"), "{shown}");
    }

    fn address() -> impl Strategy<Value = SocketAddr> {
        prop_oneof![
            any::<([u8; 4], u16)>().prop_map(SocketAddr::from),
            any::<([u8; 16], u16)>().prop_map(SocketAddr::from),
            any::<([u8; 4], u16)>().prop_map(|(ip, port)| (Ipv4Addr::from(ip).to_ipv6_mapped(), port).into()),
        ]
    }

    proptest! {
        /// What is written is read back, whatever the families and whatever follows.
        #[test]
        fn round_trip(source in address(), destination in address(), rest: Vec<u8>) {
            for encode in [encode_v1, encode_v2] {
                let mut bytes = encode(source, destination);
                let len = bytes.len();
                bytes.extend_from_slice(&rest);
                let Parsed::Header(Header { len: read, command }) = parse(&bytes) else {
                    panic!("not a header");
                };
                prop_assert_eq!(read, len);
                let Command::Proxied { source: from, destination: to } = command else {
                    panic!("no addresses");
                };
                for (read, written) in [(from, source), (to, destination)] {
                    prop_assert_eq!(read.ip().to_canonical(), written.ip().to_canonical());
                    prop_assert_eq!(read.port(), written.port());
                }
                for cut in 0..len {
                    prop_assert_eq!(parse(&bytes[..cut]), Parsed::Incomplete);
                }
            }
        }

        /// No TLV and no changed byte makes a decision waver.
        #[test]
        fn any_tlvs(body: Vec<u8>, at in 0..60usize, to: u8) {
            let mut bytes = encode_v2(([192, 0, 2, 1], 1).into(), ([192, 0, 2, 2], 2).into());
            bytes.extend_from_slice(&body);
            bytes[15] = (V2_INET + body.len()) as u8;
            let at = at % bytes.len();
            bytes[at] = to;
            monotone(&bytes, parse, |it| *it == Parsed::Incomplete);
        }
    }
}

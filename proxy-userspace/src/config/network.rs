//! Addresses: ranges that the operator wrote down, and what belongs to the public internet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

/// Bits before the IPv4 address in one that is mapped into IPv6 (RFC 4291, section 2.5.5.2).
const MAPPED: u8 = 96;

/// Ranges of addresses that the operator wrote down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges(Vec<IpNet>);

impl Ranges {
    /// All of these.
    #[must_use]
    pub fn new(ranges: Vec<IpNet>) -> Self {
        Self(ranges)
    }

    /// Whether one of them has the address. An IPv4 address mapped into IPv6 is an IPv4 address.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.iter().any(|range| range.contains(&ip))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each.
    pub fn iter(&self) -> impl Iterator<Item = &IpNet> {
        self.0.iter()
    }
}

/// What a range means, as it is to be kept: addresses are compared as what they are, and a range of IPv4 addresses that are
/// mapped into IPv6 would have none of them.
///
/// # Errors
/// It has more than IPv4 addresses, though it begins as one of those: what to write instead.
pub(super) fn canonical(range: IpNet) -> Result<IpNet, String> {
    let mapped = match range {
        IpNet::V4(_) => None,
        IpNet::V6(range) => range.addr().to_ipv4_mapped().map(|ip| (ip, range.prefix_len())),
    };
    let Some((ip, len)) = mapped else { return Ok(range.trunc()) };
    match len.checked_sub(MAPPED).map(|len| Ipv4Net::new(ip, len)) {
        Some(Ok(range)) => Ok(IpNet::from(range).trunc()),
        // What was meant is most likely the length that follows an IPv4 address.
        _ => Err(format!("write the IPv4 range, for example \"{ip}/{}\"", len.min(32))),
    }
}

/// Whether an address is one of the public internet: a proxy that dials others could be turned against its own
/// network. IPv4 addresses embedded in IPv6 ones are judged as what they reach.
#[must_use]
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !(a == 0
        || ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_documentation()
        // Multicast, reserved, broadcast.
        || a >= 224
        // Carrier-grade NAT, RFC 6598.
        || (a == 100 && b & 0xc0 == 64)
        // Benchmarking, RFC 2544.
        || (a == 198 && b & 0xfe == 18)
        // Protocol assignments, RFC 6890.
        || (a == 192 && b == 0 && c == 0))
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let segments = ip.segments();
    let embedded = |high: u16, low: u16| is_public_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match segments {
        // Mapped and compatible; the latter include `::` and `::1`.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => segments[5] == 0xffff && embedded(high, low),
        // NAT64, RFC 6052, and its private form, RFC 8215.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x64, 0xff9b, ..] => false,
        // 6to4, RFC 3056.
        [0x2002, high, low, ..] => embedded(high, low),
        // Documentation, RFC 3849.
        [0x2001, 0xdb8, ..] => false,
        // Only 2000::/3 is given out.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_in_every_form() {
        let private = [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.1.1",
            "172.16.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::10.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001:db8::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "ff02::1",
        ];
        for ip in private {
            assert!(!is_public(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn ranges_of_both_families() {
        let ranges = Ranges::new(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]);
        for (ip, inside) in [
            ("10.255.0.1", true),
            ("11.0.0.1", false),
            ("::ffff:10.0.0.1", true),
            ("fd12::1", true),
            ("fe80::1", false),
            ("::1", false),
        ] {
            assert_eq!(ranges.contains(ip.parse().unwrap()), inside, "{ip}");
        }
    }

    #[test]
    fn a_mapped_range_is_one_of_ipv4() {
        let canonical = |text: &str| canonical(text.parse().unwrap());
        for (written, meant) in [
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
            ("::ffff:192.0.2.7/128", "192.0.2.7/32"),
            ("::ffff:c000:207/127", "192.0.2.6/31"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            // Others stay.
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("fd00::1/8", "fd00::/8"),
            ("::/0", "::/0"),
        ] {
            let range = canonical(written).unwrap();
            assert_eq!(range, meant.parse().unwrap(), "{written}");
            if let Some((ip, _)) = written.split_once('/') {
                assert!(Ranges::new(vec![range]).contains(ip.parse().unwrap()), "{written}");
            }
        }
        for (written, meant) in [
            ("::ffff:10.0.0.0/8", "\"10.0.0.0/8\""),
            ("::ffff:10.0.0.0/95", "\"10.0.0.0/32\""),
            ("::ffff:0:0/0", "\"0.0.0.0/0\""),
        ] {
            assert!(canonical(written).unwrap_err().contains(meant), "{written}");
        }
    }

    #[test]
    fn public_addresses() {
        let public = [
            "157.240.1.1",
            "100.63.0.1",
            "100.128.0.1",
            "172.32.0.1",
            "198.20.0.1",
            "2a03:2880::1",
            "::ffff:157.240.1.1",
            "64:ff9b::9df0:101",
            "2002:9df0:101::",
        ];
        for ip in public {
            assert!(is_public(ip.parse().unwrap()), "{ip}");
        }
    }
}

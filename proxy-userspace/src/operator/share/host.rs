//! The host of a link: what WhatsApp takes, and what phones elsewhere would hardly reach.

use std::net::{IpAddr, Ipv4Addr};

use super::error::ShareError;

/// The longest name of a host (RFC 1035, section 2.3.4).
const LONGEST: usize = 253;
/// Ends of names that public DNS has not, or only as an example, and what they are.
const SPECIAL: [(&str, &str); 16] = [
    ("localhost", "is this machine itself, for every machine"),
    ("local", "is a name of the local network alone (mDNS)"),
    ("lan", "is a name of a local network alone"),
    ("home", "is a name of a local network alone"),
    ("corp", "is a name of a local network alone"),
    ("internal", "is a name of a private network alone"),
    ("home.arpa", "is a name of a home network alone"),
    ("onion", "is a name inside Tor, which WhatsApp does not use"),
    ("i2p", "is a name inside I2P, which WhatsApp does not use"),
    ("alt", "is no name of the DNS"),
    ("test", "is a name for tests, which public DNS does not have"),
    ("invalid", "is a name that exists nowhere"),
    ("example", "is a name for examples"),
    ("example.com", "is a name for examples"),
    ("example.net", "is a name for examples"),
    ("example.org", "is a name for examples"),
];

/// The host as WhatsApp takes it: an IPv4 address or a name, in lower case. What passes needs no percent-encoding.
///
/// # Errors
/// When WhatsApp would not take it.
pub fn checked(given: &str) -> Result<String, ShareError> {
    let host = given.trim();
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    match inner.parse() {
        Ok(IpAddr::V6(ip)) => return Err(ShareError::Ipv6(ip)),
        Ok(IpAddr::V4(ip)) if ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() => {
            return Err(ShareError::NoServer(ip));
        }
        Ok(IpAddr::V4(ip)) => return Ok(ip.to_string()),
        Err(_) => {}
    }
    let wrong = |problem| Err(ShareError::Host { host: given.into(), problem });
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if name.is_empty() {
        return wrong("it is empty");
    }
    if !name.is_ascii() {
        return wrong("write it in its ASCII form, which begins with xn--");
    }
    if name.contains("://") || name.contains('/') {
        return wrong("write only the name, without https:// and path");
    }
    if name.contains(':') {
        return wrong("write only the name; ports are said apart from it");
    }
    if name.len() > LONGEST {
        return wrong("it is longer than 253 characters");
    }
    for label in name.split('.') {
        if !(1..64).contains(&label.len()) {
            return wrong("each part between dots has 1 to 63 characters");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return wrong("no part begins or ends with a hyphen");
        }
        if !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return wrong("only letters, digits, hyphens and dots may be in it");
        }
    }
    // A name whose last part is a number is an address with a slip (RFC 3696, section 2).
    if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
        return wrong("it looks like an IPv4 address, but is none");
    }
    Ok(name)
}

/// Why phones would hardly reach a [`checked`] host, if there is a reason. The operator may know better.
pub(crate) fn doubt(host: &str) -> Option<String> {
    let reason = match host.parse() {
        Ok(ip) => address_doubt(ip)?,
        Err(_) => name_doubt(host)?,
    };
    Some(format!("{host} {reason}: can phones elsewhere reach it?"))
}

fn address_doubt(ip: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = ip.octets();
    Some(match (a, b, c) {
        (127, ..) => "is this machine itself, for every machine (loopback)",
        (169, 254, _) => "is an address of one link alone (link-local)",
        (100, 64..128, _) => "is an address behind a provider's NAT (RFC 6598)",
        _ if ip.is_private() => "is a private address",
        _ if ip.is_documentation() => "is an address for documentation",
        (198, 18 | 19, _) => "is an address for benchmarks",
        (0 | 240.., ..) | (192, 0, 0) => "is an address that no server on the internet has",
        _ => return None,
    })
}

fn name_doubt(name: &str) -> Option<&'static str> {
    let special = |(end, _): &&(&str, &str)| {
        name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    match SPECIAL.iter().find(special) {
        Some((_, reason)) => Some(reason),
        None if !name.contains('.') => Some("is a name without a dot, which only a local network knows"),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::is_public;

    #[test]
    fn hosts_that_whatsapp_takes() {
        let long = format!("{}.example", "a".repeat(63));
        for (given, host) in [
            ("157.240.1.1", "157.240.1.1"),
            ("192.168.1.5", "192.168.1.5"),
            ("127.0.0.1", "127.0.0.1"),
            ("EXAMPLE.org", "example.org"),
            ("a-b.c0.example.", "a-b.c0.example"),
            ("xn--ls8h.la", "xn--ls8h.la"),
            (&long, &long),
        ] {
            assert_eq!(checked(given).unwrap(), host);
        }
    }

    #[test]
    fn hosts_that_are_refused_with_the_reason() {
        for ip in ["2001:db8::1", "[2001:db8::1]", "::1", "::ffff:1.2.3.4"] {
            assert!(matches!(checked(ip), Err(ShareError::Ipv6(_))), "{ip}");
        }
        for ip in ["0.0.0.0", "224.0.0.1", "255.255.255.255"] {
            assert!(matches!(checked(ip), Err(ShareError::NoServer(_))), "{ip}");
        }
        let long = "a.".repeat(127) + "b";
        for (host, problem) in [
            ("", "empty"),
            (".", "empty"),
            ("a..b", "1 to 63"),
            (&format!("{}.b", "a".repeat(64)), "1 to 63"),
            (&long, "longer than 253"),
            ("-a.example", "hyphen"),
            ("a-.example", "hyphen"),
            ("a_b.example", "only letters"),
            ("a b.example", "only letters"),
            ("a&chatPort=1", "only letters"),
            ("https://example.org", "without https://"),
            ("example.org:443", "ports are said"),
            ("пример.рф", "xn--"),
            ("1.2.3.256", "IPv4"),
            ("1.2.3", "IPv4"),
        ] {
            let error = checked(host).unwrap_err().to_string();
            assert!(error.contains(problem), "{host}: {error}");
        }
    }

    #[test]
    fn hosts_that_phones_hardly_reach() {
        for (host, reason) in [
            ("127.0.0.1", "loopback"),
            ("10.1.2.3", "private"),
            ("172.31.0.1", "private"),
            ("192.168.1.5", "private"),
            ("169.254.1.1", "link-local"),
            ("100.64.0.1", "NAT"),
            ("100.127.255.255", "NAT"),
            ("192.0.2.1", "documentation"),
            ("198.51.100.7", "documentation"),
            ("203.0.113.1", "documentation"),
            ("198.19.0.1", "benchmarks"),
            ("0.1.2.3", "no server"),
            ("192.0.0.8", "no server"),
            ("250.1.1.1", "no server"),
            ("localhost", "this machine"),
            ("setu", "without a dot"),
            ("printer.local", "mDNS"),
            ("setu.home.arpa", "home network"),
            ("setu.internal", "private network"),
            ("abc.onion", "Tor"),
            ("proxy.example.com", "examples"),
            ("proxy.example.org", "examples"),
        ] {
            let doubt = doubt(host).unwrap_or_default();
            assert!(doubt.starts_with(host) && doubt.contains(reason), "{host}: {doubt}");
        }
        for host in [
            "157.240.1.1",
            "100.128.0.1",
            "192.0.1.1",
            "setu.net",
            "myexample.com",
            "local.org",
            "xn--ls8h.la",
        ] {
            assert_eq!(doubt(host), None);
        }
    }

    #[test]
    fn addresses_are_doubted_that_setu_would_not_dial() {
        // One of each /16, and what is finer.
        let networks = (0..=u32::from(u16::MAX)).map(|high| high << 16 | 7);
        for ip in networks.chain([0xc000_0009, 0xc000_0209, 0xc633_6409, 0xcb00_7109]).map(Ipv4Addr::from) {
            let sharable = checked(&ip.to_string()).is_ok_and(|host| doubt(&host).is_none());
            assert_eq!(sharable, is_public(ip.into()), "{ip}");
        }
    }
}

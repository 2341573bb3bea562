//! Makes a certificate that looks like very many others, because what it says is shown to everyone who connects.
//!
//! The population is what `openssl req -x509` makes with its defaults and a P-256 key: the names in their order, the
//! extensions with theirs, a serial number of 159 random bits, identifiers of the key by SHA-1. Whoever has named no
//! host is one of those who pressed Enter at each question; whoever has, one of those who gave it by `-subj` and
//! `-addext`. It is P-256 and not the even commoner RSA because an RSA signature costs twenty times as much, which
//! whoever floods the port would not pay.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, DnValue, IsCa, KeyPair,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SerialNumber, date_time_ymd,
};
use rustls::crypto::aws_lc_rs as provider;

use crate::config::Host;

const DAY: u64 = 86_400;
/// As in the instructions that everyone copies: `openssl req -x509 -days 365`.
const VALID: u64 = 365 * DAY;
/// The beginning of the validity lies up to so many seconds back: a server is rarely met on its first day.
const BACKDATED: u64 = 30 * DAY;
/// Letters of a common name, at most (`ub_common_name`, RFC 5280, appendix A.1); openssl takes no more.
const COMMON_NAME: usize = 64;

const SUBJECT_KEY_IDENTIFIER: &[u64] = &[2, 5, 29, 14];
const SUBJECT_ALT_NAME: &[u64] = &[2, 5, 29, 17];
const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
const AUTHORITY_KEY_IDENTIFIER: &[u64] = &[2, 5, 29, 35];

const OCTETS: u8 = 0x04;
const SEQUENCE: u8 = 0x30;
/// `GeneralName` and `AuthorityKeyIdentifier` number their parts (RFC 5280, section 4.2.1).
const KEY_IDENTIFIER: u8 = 0x80;
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;

/// Makes a key and a certificate for these names, in one PEM text.
pub(super) fn make(names: &[Host], now: SystemTime) -> Result<String, rcgen::Error> {
    let mut serial: [u8; 20] = random()?;
    // 159 bits (`rand_serial`, openssl's apps/lib/apps.c).
    serial[0] &= 0x7f;
    let age = u64::from_le_bytes(random()?) % BACKDATED;

    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(names)?;
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().saturating_sub(age);
    params.not_before = date_time_ymd(1970, 1, 1) + Duration::from_secs(since);
    params.not_after = params.not_before + Duration::from_secs(VALID);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    // rcgen's own extensions come in another order, and with another identifier of the key.
    params.is_ca = IsCa::NoCa;
    params.custom_extensions = extensions(names, digest(&SHA1_FOR_LEGACY_USE_ONLY, key.der_bytes()).as_ref());
    let certificate = params.self_signed(&key)?;
    Ok(key.serialize_pem() + &certificate.pem())
}

/// What openssl's own configuration file suggests, or the first name.
fn subject(names: &[Host]) -> Result<DistinguishedName, rcgen::Error> {
    let mut subject = DistinguishedName::new();
    match names.first().map(text) {
        Some(name) if name.len() <= COMMON_NAME => subject.push(DnType::CommonName, name),
        _ => {
            subject.push(DnType::CountryName, DnValue::PrintableString("AU".try_into()?));
            subject.push(DnType::StateOrProvinceName, "Some-State");
            subject.push(DnType::OrganizationName, "Internet Widgits Pty Ltd");
        }
    }
    Ok(subject)
}

fn text(name: &Host) -> String {
    match name {
        Host::Ip(ip) => ip.to_string(),
        Host::Name(name) => name.trim_end_matches('.').to_owned(),
    }
}

fn extensions(names: &[Host], key: &[u8]) -> Vec<CustomExtension> {
    let extension = |oid, content| CustomExtension::from_oid_content(oid, content);
    // CA:TRUE, critical, as openssl's section v3_ca has it.
    let mut constraints = extension(BASIC_CONSTRAINTS, der(SEQUENCE, &[0x01, 1, 0xff]));
    constraints.set_criticality(true);
    let mut extensions = vec![
        extension(SUBJECT_KEY_IDENTIFIER, der(OCTETS, key)),
        extension(AUTHORITY_KEY_IDENTIFIER, der(SEQUENCE, &der(KEY_IDENTIFIER, key))),
        constraints,
    ];
    if !names.is_empty() {
        let name = |name: &Host| match name {
            Host::Ip(IpAddr::V4(ip)) => der(IP_ADDRESS, &ip.octets()),
            Host::Ip(IpAddr::V6(ip)) => der(IP_ADDRESS, &ip.octets()),
            Host::Name(_) => der(DNS_NAME, text(name).as_bytes()),
        };
        let all: Vec<u8> = names.iter().flat_map(name).collect();
        extensions.push(extension(SUBJECT_ALT_NAME, der(SEQUENCE, &all)));
    }
    extensions
}

/// A value in DER: tag, length, content (X.690, section 8.1.3).
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let bytes = content.len().to_be_bytes();
    let length = match content.len() {
        short @ 0..=0x7f => vec![short as u8],
        long => {
            let significant = &bytes[long.leading_zeros() as usize / 8..];
            [&[0x80 | significant.len() as u8], significant].concat()
        }
    };
    [&[tag], &length[..], content].concat()
}

fn random<const LEN: usize>() -> Result<[u8; LEN], rcgen::Error> {
    let mut bytes = [0; LEN];
    let random = provider::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, fs};

    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    use setu_tests::servers;

    use super::*;

    /// One value of DER, and what is in it if it is made of others. What is random or a time is shown by its kind.
    fn outline(mut der: &[u8], depth: usize, lines: &mut Vec<String>) {
        while let [tag, rest @ ..] = der {
            let (len, rest) = match rest {
                [short @ 0..=0x7f, rest @ ..] => (usize::from(*short), rest),
                [0x81, len, rest @ ..] => (usize::from(*len), rest),
                [0x82, high, low, rest @ ..] => (usize::from(*high) << 8 | usize::from(*low), rest),
                _ => panic!("{der:?}"),
            };
            let (content, after) = rest.split_at(len);
            let made_of_others = tag & 0x20 != 0;
            let shown = match tag {
                // The serial number, whose length is told below; signatures have one of several lengths.
                0x02 if len > 1 => "integer".into(),
                0x03 if content[1] == 0x30 => "signature".into(),
                0x03 => format!("key of {len}"),
                0x17 => format!("time of {len}"),
                _ if made_of_others => String::new(),
                // Identifiers of the key are compared by what they are made of.
                0x04 if content.starts_with(&[4, 20]) || content.starts_with(&[0x30, 22, 0x80, 20]) => {
                    format!("{:x?} and 20", &content[..len - 20])
                }
                _ => format!("{content:x?}"),
            };
            lines.push(format!("{:depth$}{tag:02x} {shown}", ""));
            if made_of_others {
                outline(content, depth + 1, lines);
            }
            der = after;
        }
    }

    fn openssl(names: &[Host], folder: &std::path::Path) -> CertificateDer<'static> {
        let (key, chain) = (folder.join("key.pem"), folder.join("chain.pem"));
        let mut arguments = vec![
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "365",
        ];
        let (subject, alternatives);
        if let Some(first) = names.first() {
            let prefix = |name: &Host| match name {
                Host::Ip(ip) => format!("IP:{ip}"),
                Host::Name(_) => format!("DNS:{}", text(name)),
            };
            subject = format!("/CN={}", text(first));
            alternatives =
                format!("subjectAltName={}", names.iter().map(prefix).collect::<Vec<_>>().join(","));
            arguments.extend(["-subj", &subject, "-addext", &alternatives]);
        } else {
            // Enter at each question.
            arguments.extend(["-subj", "/C=AU/ST=Some-State/O=Internet Widgits Pty Ltd"]);
        }
        let files = ["-keyout", key.to_str().unwrap(), "-out", chain.to_str().unwrap()];
        let made = servers::run("openssl", &[&arguments[..], &files].concat());
        assert!(made.success, "{made:?}");
        CertificateDer::from_pem_slice(&fs::read(chain).unwrap()).unwrap()
    }

    fn setu(names: &[Host]) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(make(names, SystemTime::now()).unwrap().as_bytes()).unwrap()
    }

    #[test]
    fn field_by_field_it_is_one_of_openssls() {
        let folder = tempfile::tempdir().unwrap();
        let long = format!("{}.example.org", "long".repeat(12));
        let many: Vec<_> = (0..30).map(|number| format!("host{number}.example.org")).collect();
        let lists = [
            Vec::new(),
            vec!["proxy.example.org"],
            vec!["192.0.2.1", "2001:db8::1", "proxy.example.org"],
            vec![&long],
            many.iter().map(String::as_str).collect(),
        ];
        for list in lists {
            let names: Vec<Host> = list.iter().map(|name| name.parse().unwrap()).collect();
            let (mut own, mut theirs) = (Vec::new(), Vec::new());
            outline(&setu(&names), 0, &mut own);
            outline(&openssl(&names, folder.path()), 0, &mut theirs);
            assert_eq!(own, theirs, "{list:?}");
        }
    }

    /// Both identifiers are the SHA-1 of the key's bits (RFC 5280, section 4.2.1.2).
    #[test]
    fn the_key_is_identified_as_everyone_does() {
        let certificate = setu(&[]);
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).unwrap();
        let bits = &parsed.tbs_certificate.subject_pki.subject_public_key.data;
        let expected = digest(&SHA1_FOR_LEGACY_USE_ONLY, bits);
        let found =
            certificate.windows(22).filter(|bytes| bytes[1] == 20 && bytes[2..] == *expected.as_ref());
        assert_eq!(found.map(|bytes| bytes[0]).collect::<Vec<_>>(), [0x04, 0x80]);
    }

    /// Of all serial numbers of up to 159 bits, not of some.
    #[test]
    fn serial_numbers_have_no_pattern() {
        let mut first = HashSet::new();
        for _ in 0..200 {
            let certificate = setu(&[]);
            let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).unwrap();
            let serial = parsed.raw_serial();
            assert!(serial.len() <= 20 && serial[0] < 0x80, "{serial:?}");
            first.insert(serial[0] >> 5);
        }
        assert_eq!(first, HashSet::from([0, 1, 2, 3]));
    }

    #[test]
    fn a_name_that_is_too_long_is_not_the_subject() {
        let long: Host = format!("{}.example", ["a"; 40].join(".")).parse().unwrap();
        let certificate = setu(&[long]);
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).unwrap();
        assert_eq!(parsed.subject().to_string(), "C=AU, ST=Some-State, O=Internet Widgits Pty Ltd");
    }
}

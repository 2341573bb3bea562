//! Makes a certificate that looks like that of any small server, because what it says is shown to everyone who connects.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256, SanType,
    SerialNumber, date_time_ymd,
};
use rustls::crypto::aws_lc_rs;

use crate::config::Host;

const DAY: u64 = 86_400;
/// As `openssl req -x509 -days 365`.
const VALID: u64 = 365 * DAY;
/// The beginning of the validity lies up to so many seconds back: a server is rarely met on its first day.
const BACKDATED: u64 = 30 * DAY;
/// How the hosts of small servers are called, before a number.
const HOSTS: [&str; 12] =
    ["vps", "srv", "host", "node", "web", "mail", "nas", "box", "server", "gw", "app", "cloud"];

/// Makes a key and a certificate for these names, in one PEM text. Without a name it is for an invented host.
pub(super) fn make(names: &[Host], now: SystemTime) -> Result<String, rcgen::Error> {
    let mut serial: [u8; 20] = random()?;
    // Positive and of full length, as everyone's (RFC 5280, section 4.1.2.2).
    serial[0] = serial[0] & 0x7f | 0x40;
    let age = u64::from_le_bytes(random()?) % BACKDATED;

    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = names
        .iter()
        .map(|name| match name {
            Host::Ip(ip) => Ok(SanType::IpAddress(*ip)),
            Host::Name(name) => Ok(SanType::DnsName(name.trim_end_matches('.').try_into()?)),
        })
        .collect::<Result<_, rcgen::Error>>()?;
    let subject = match names.first() {
        Some(Host::Ip(ip)) => ip.to_string(),
        Some(Host::Name(name)) => name.trim_end_matches('.').to_owned(),
        None => invented(random()?, u32::from_le_bytes(random()?)),
    };
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().saturating_sub(age);
    params.not_before = date_time_ymd(1970, 1, 1) + Duration::from_secs(since);
    params.not_after = params.not_before + Duration::from_secs(VALID);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.is_ca = IsCa::ExplicitNoCa;
    let certificate = params.self_signed(&key)?;
    Ok(key.serialize_pem() + &certificate.pem())
}

fn invented([host, style]: [u8; 2], number: u32) -> String {
    let host = HOSTS[usize::from(host) % HOSTS.len()];
    match style % 4 {
        0 => format!("{host}{}", number % 40 + 1),
        1 => format!("{host}-{}", number % 9000 + 1000),
        2 => format!("{host}-{number:08x}"),
        _ => format!("{host}-{:06x}", number >> 8),
    }
}

fn random<const LEN: usize>() -> Result<[u8; LEN], rcgen::Error> {
    let mut bytes = [0; LEN];
    let random = aws_lc_rs::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn invented_hosts_differ() {
        let hosts: HashSet<_> =
            (0..=255).map(|byte| invented([byte, byte / 3], u32::from(byte) << 20)).collect();
        assert!(hosts.len() > 100, "{hosts:?}");
    }
}

//! The certificate that clients are shown: the operator's, or one that setu made and keeps.

use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, OpenOptions},
    io::{self, Read as _},
    net::IpAddr,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
    sign::CertifiedKey,
};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tracing::{info, warn};
use x509_parser::{
    extensions::GeneralName,
    prelude::{X509Certificate, X509Version},
};

use super::{self_signed, settings::TlsSettings};
use crate::{
    config::Host,
    sys::{
        self,
        state_dir::{CERTIFICATE, StateDir},
    },
};

/// A certificate of setu's is replaced so long before it expires.
const RENEW: Duration = Duration::from_secs(30 * 86_400);
/// The beginning of 2026, in seconds since 1970: a clock that shows less is not set yet, as that of a small machine without
/// a battery, and no certificate is given up for it.
const UNSET: Duration = Duration::from_secs(1_767_225_600);

/// Bytes of a file, at most: many times what any chain has.
const MOST: u64 = 1 << 20;

/// What some editors put before a text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// What keys with a passphrase have, of PKCS #8 and of older forms (RFC 7468, RFC 1421).
const ENCRYPTED: [&[u8]; 2] = [b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED"];

/// What is wrong with a certificate, and the fix.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {error}; {remedy}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The key has a passphrase.
    #[error(
        "{}: the key is encrypted, and nobody is there to be asked for the passphrase; write it without: \
         openssl pkey -in {} -out NEW", .path.display(), .path.display()
    )]
    Encrypted {
        /// The file.
        path: PathBuf,
    },
    /// The file is not PEM, or what it is for is not in it.
    #[error("{}: no {what} in it: {problem}; it must be PEM, with a line -----BEGIN {line}-----{found}", .path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What should be there.
        what: &'static str,
        /// What is there.
        problem: pem::Error,
        /// What to look for.
        line: &'static str,
        /// What is there, if that is known.
        found: &'static str,
    },
    /// The certificate cannot be understood.
    #[error("{}: not an X.509 certificate: {problem}; replace it", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The key cannot be used with the certificate.
    #[error(
        "{}: the key does not belong to the first certificate in {}: {problem}; the server's own certificate must come \
         first, and key and certificate must be from the same request",
        .key.display(), .chain.display()
    )]
    Mismatch {
        /// The file with the key.
        key: PathBuf,
        /// The file with the certificates.
        chain: PathBuf,
        /// In rustls' words.
        problem: rustls::Error,
    },
    /// The key is of a kind that rustls does not know.
    #[error("{}: the key cannot be used: {problem}; use an ECDSA P-256 or RSA 2048 key, not encrypted", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// In rustls' words.
        problem: rustls::Error,
    },
    /// Making a certificate failed.
    #[error("a certificate cannot be made: {0}; configure one by tls.certificate and tls.key")]
    Make(#[from] rcgen::Error),
    /// A made certificate cannot be kept.
    #[error("{}: cannot be written: {error}; let setu's user write there, or set tls.state_dir", .path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A certificate is to be made although the operator's is configured.
    #[error("the certificate is that of tls.certificate, {}; remove tls.certificate and tls.key to have setu make one", .0.display())]
    Operators(PathBuf),
    /// The cryptography cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Crypto(rustls::Error),
}

/// A certificate that can be served.
#[derive(Debug)]
pub(super) struct Certificate {
    pub(super) certified: CertifiedKey,
    pub(super) description: Description,
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Whom it is about.
    pub subject: String,
    /// Whom it is for, in the order of the certificate.
    pub names: Vec<String>,
    /// Valid from here.
    pub not_before: SystemTime,
    /// Valid until here.
    pub not_after: SystemTime,
    /// SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
    /// Where it is from.
    pub source: Source,
}

/// Where a certificate is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The operator's file.
    Operator(PathBuf),
    /// Made by setu and kept in this file.
    Own(PathBuf),
    /// Made by setu and kept nowhere.
    Memory,
}

/// Loads the certificate, or makes one.
pub(super) fn load(settings: &TlsSettings) -> Result<Certificate, CertificateError> {
    let now = SystemTime::now();
    if let Some((chain, key)) = &settings.certificate {
        let certificate = read(chain, key, Source::Operator(chain.clone()))?;
        warn_of(&certificate.description, chain, key, now);
        return Ok(certificate);
    }
    let file = settings.own_file();
    let why = match read(&file, &file, Source::Own(file.clone())) {
        Ok(certificate) => match certificate.description.why_not(settings, now) {
            None => return Ok(certificate),
            Some(why) => {
                warn_of_the_clock(&certificate.description, &file, now);
                why.to_owned()
            }
        },
        Err(CertificateError::Unreadable { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            "there is none yet".to_owned()
        }
        Err(error) => error.to_string(),
    };
    info!(%why, "making a TLS certificate");
    let pem = self_signed::make(&settings.names, now)?;
    let source = match keep(settings, &pem) {
        Ok(()) => Source::Own(file.clone()),
        Err(error) => {
            let error = CertificateError::Unwritable { path: file.clone(), error };
            warn!(%error, "the TLS certificate will change at the next start");
            Source::Memory
        }
    };
    parse(pem.as_bytes(), pem.as_bytes(), &file, &file, source)
}

/// What the certificate says that `setu run` would serve.
///
/// # Errors
/// It cannot be read; there is none before setu has run or [`renew`] made one.
pub fn show(settings: &TlsSettings) -> Result<Description, CertificateError> {
    let (chain, key, source) = match &settings.certificate {
        Some((chain, key)) => (chain.clone(), key.clone(), Source::Operator(chain.clone())),
        None => {
            let file = settings.own_file();
            (file.clone(), file.clone(), Source::Own(file))
        }
    };
    Ok(read(&chain, &key, source)?.description)
}

/// Makes a new certificate and keeps it. A setu that runs takes it up by itself.
///
/// # Errors
/// The operator's certificate is configured, or the new one cannot be kept.
pub fn renew(settings: &TlsSettings) -> Result<Description, CertificateError> {
    if let Some((chain, _)) = &settings.certificate {
        return Err(CertificateError::Operators(chain.clone()));
    }
    let file = settings.own_file();
    let pem = self_signed::make(&settings.names, SystemTime::now())?;
    keep(settings, &pem).map_err(|error| CertificateError::Unwritable { path: file.clone(), error })?;
    show(settings)
}

fn read(chain: &Path, key: &Path, source: Source) -> Result<Certificate, CertificateError> {
    let bytes = |path: &Path| {
        let bytes = match &source {
            Source::Own(file) => read_own(file),
            _ => read_file(path),
        };
        bytes.map_err(|error| CertificateError::Unreadable {
            path: path.into(),
            remedy: if sys::sandbox::is_to_blame(path, &error) {
                sys::sandbox::REMEDY
            } else {
                "let setu's user read it, or correct the path"
            },
            error,
        })
    };
    parse(&bytes(chain)?, &bytes(key)?, chain, key, source)
}

/// Reads an operator's file, which must be one: what is a pipe would be waited for, and with it all that this thread does.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What is in a file in place of what should be, and what to do about it.
fn found(bytes: &[u8]) -> &'static str {
    const KINDS: [(&[u8], &str); 7] = [
        (b"-----BEGIN OPENSSH PRIVATE KEY", ". It has a key of OpenSSH: ssh-keygen -p -m PEM -f FILE"),
        (
            b"CERTIFICATE REQUEST-----",
            ". It has a certificate request: take the certificate that was made of it",
        ),
        (b"-----BEGIN TRUSTED CERTIFICATE", ". It has openssl's own form: openssl x509 -in FILE -out NEW"),
        (b"-----BEGIN PUBLIC KEY", ". It has a public key"),
        (b"PRIVATE KEY-----", ". It has a private key: are tls.certificate and tls.key swapped?"),
        (b"-----BEGIN CERTIFICATE", ". It has a certificate: are tls.certificate and tls.key swapped?"),
        (b"-----BEGIN", ""),
    ];
    match bytes {
        [] => return ". It is empty",
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return ". It is UTF-16: save it as plain text",
        [0x30, 0x80..=0xff, ..] => {
            return ". It is binary: openssl x509 (or pkey) -inform der -in FILE -out NEW, or for PKCS #12 openssl pkcs12 \
                    -nodes -in FILE -out NEW";
        }
        _ => {}
    }
    let has = |sign: &[u8]| bytes.windows(sign.len()).any(|part| part == sign);
    KINDS.into_iter().find(|(sign, _)| has(sign)).map_or("", |(_, what)| what)
}

/// Reads what setu has kept.
fn read_own(file: &Path) -> io::Result<Vec<u8>> {
    StateDir::there(file.parent().ok_or(io::ErrorKind::NotFound)?)?.read(CERTIFICATE)
}

fn parse(
    chain_pem: &[u8],
    key_pem: &[u8],
    chain: &Path,
    key: &Path,
    source: Source,
) -> Result<Certificate, CertificateError> {
    let no_certificate = |problem| CertificateError::NotPem {
        path: chain.into(),
        what: "certificate",
        problem,
        line: "CERTIFICATE",
        found: found(chain_pem),
    };
    let no_key = |problem| CertificateError::NotPem {
        path: key.into(),
        what: "private key",
        problem,
        line: "PRIVATE KEY",
        found: found(key_pem),
    };
    let [chain_pem, key_pem] =
        [chain_pem, key_pem].map(|pem| pem.strip_prefix(BYTE_ORDER_MARK).unwrap_or(pem));
    let certificates =
        CertificateDer::pem_slice_iter(chain_pem).collect::<Result<Vec<_>, _>>().map_err(no_certificate)?;
    let first = certificates.first().ok_or(pem::Error::NoItemsFound).map_err(no_certificate)?;
    let description = Description::parse(first, source)
        .map_err(|problem| CertificateError::Malformed { path: chain.into(), problem })?;
    if ENCRYPTED.iter().any(|sign| key_pem.windows(sign.len()).any(|part| part == *sign)) {
        return Err(CertificateError::Encrypted { path: key.into() });
    }
    let private = PrivateKeyDer::from_pem_slice(key_pem).map_err(no_key)?;
    let certified =
        CertifiedKey::from_der(certificates, private, &aws_lc_rs::default_provider()).map_err(|problem| {
            match problem {
                rustls::Error::InconsistentKeys(_) => {
                    CertificateError::Mismatch { key: key.into(), chain: chain.into(), problem }
                }
                problem => CertificateError::Key { path: key.into(), problem },
            }
        })?;
    Ok(Certificate { certified, description })
}

/// Says what is unwise about the operator's files.
fn warn_of(description: &Description, chain: &Path, key: &Path, now: SystemTime) {
    let file = chain.display();
    if now > description.not_after {
        warn!(%file, since = %day(description.not_after), "the TLS certificate has expired; replace it");
    } else if now < description.not_before {
        warn!(
            %file, until = %day(description.not_before), clock = %day(now),
            "the TLS certificate is not valid yet, and clients that check refuse it; check the clock (timedatectl), or \
             replace the certificate"
        );
    }
    // Its group may be that by which setu's user reads it.
    if fs::metadata(key).is_ok_and(|metadata| metadata.mode() & 0o004 != 0) {
        warn!(file = %key.display(), "everybody on this machine can read the TLS key; chmod o= it");
    }
}

/// Says why a certificate that setu made is of no use yet.
fn warn_of_the_clock(description: &Description, file: &Path, now: SystemTime) {
    if description.is_early(now) {
        warn!(
            file = %file.display(), until = %day(description.not_before), clock = %day(now),
            "the TLS certificate that setu made is not valid yet: the clock was ahead then, or is behind now; making \
             another. Check the clock (timedatectl)"
        );
    }
}

/// Keeps what setu made.
fn keep(settings: &TlsSettings, pem: &str) -> io::Result<()> {
    StateDir::open(&settings.state_dir)?.write(CERTIFICATE, pem.as_bytes())
}

impl Description {
    fn parse(certificate: &CertificateDer<'_>, source: Source) -> Result<Self, String> {
        let (_, parsed) =
            x509_parser::parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
        if parsed.version() != X509Version::V3 {
            // rustls' words for it are about the key.
            return Err(format!("it is of version {}, and clients want 3", parsed.version().0 + 1));
        }
        let time = |time: x509_parser::time::ASN1Time| {
            UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
        };
        Ok(Self {
            subject: parsed.subject().to_string(),
            names: names(&parsed),
            not_before: time(parsed.validity().not_before),
            not_after: time(parsed.validity().not_after),
            fingerprint: Sha256::digest(certificate).into(),
            source,
        })
    }

    /// Whether a certificate of setu's must be replaced soon.
    pub(super) fn is_due(&self) -> bool {
        let now = SystemTime::now();
        now + RENEW >= self.not_after || self.is_early(now)
    }

    /// Whether a certificate of setu's was made by a clock that was ahead: its validity begins days before it is made.
    fn is_early(&self, now: SystemTime) -> bool {
        now < self.not_before && now >= UNIX_EPOCH + UNSET
    }

    /// Why clients that check would refuse it now, if they would.
    #[must_use]
    pub fn untimely(&self, now: SystemTime) -> Option<String> {
        if now > self.not_after {
            Some(format!("it has expired, {}; replace it", day(self.not_after)))
        } else if now < self.not_before {
            let (from, now) = (day(self.not_before), day(now));
            Some(format!(
                "it is valid from {from} on, and the clock says {now}; check the clock, or replace it"
            ))
        } else {
            None
        }
    }

    /// Why setu's certificate has to be replaced, if it has to.
    fn why_not(&self, settings: &TlsSettings, now: SystemTime) -> Option<&'static str> {
        let names = |name: &Host| match name {
            Host::Ip(ip) => ip.to_string(),
            Host::Name(name) => name.trim_end_matches('.').to_owned(),
        };
        let wanted: BTreeSet<_> = settings.names.iter().map(names).collect();
        if wanted != self.names.iter().cloned().collect() {
            Some("tls.names has changed")
        } else if now + RENEW >= self.not_after {
            Some("it expires soon")
        } else if self.is_early(now) {
            Some("it is not valid yet")
        } else {
            None
        }
    }
}

/// The names and addresses that a certificate is for.
fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match **bytes {
            [a, b, c, d] => Some(IpAddr::from([a, b, c, d]).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
        },
        _ => None,
    };
    extension.value.general_names.iter().filter_map(text).collect()
}

/// The time in UTC.
fn day(time: SystemTime) -> impl fmt::Display {
    humantime::format_rfc3339_seconds(time)
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator(file) => write!(formatter, "{}", file.display()),
            Self::Own(file) => write!(formatter, "made by setu, {}", file.display()),
            Self::Memory => formatter.write_str("made by setu, not kept"),
        }
    }
}

impl fmt::Display for Description {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = if self.names.is_empty() { "none".to_owned() } else { self.names.join(", ") };
        let fingerprint = self.fingerprint.map(|byte| format!("{byte:02X}")).join(":");
        write!(
            formatter,
            "subject: {}\nnames: {names}\nvalid: {} to {}\nSHA-256: {fingerprint}\nsource: {}",
            self.subject,
            day(self.not_before),
            day(self.not_after),
            self.source
        )
    }
}

//! A client with TLS, which sees what certificate it is shown before it judges it.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore,
    SignatureScheme, StreamOwned,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use x509_parser::parse_x509_certificate;

use super::probe::{self, Connection, Failure};
use crate::operator::text::seconds;

/// The media server that is asked for.
pub(super) const MEDIA_NAME: &str = "mmg.whatsapp.net";
/// A certificate that ends sooner should be renewed.
const RENEW: Duration = Duration::from_secs(14 * 86_400);

/// Who answers for the media server.
pub(super) enum Media {
    /// WhatsApp, as this machine's certification authorities say.
    Genuine {
        /// How many there are.
        roots: usize,
    },
    /// The name is right; there is no authority to judge by.
    NameOnly,
    /// Somebody else, who says so.
    OtherName,
    /// Somebody whom no authority vouches for.
    NotTrusted(Error),
    /// Whoever has a certificate that is not valid now.
    Dated(Error),
}

/// How the certificate that setu shows to chat clients is dated. They do not check who signed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dates {
    /// It cannot be read.
    Unreadable,
    /// It will be valid from then on, in seconds since 1970 as all that follow.
    From(u64),
    /// It ended then.
    Ended(u64),
    /// It ends soon.
    Soon(u64),
    /// It is valid until then.
    Until(u64),
}

/// Does TLS to setu, and chat inside it. Returns how setu's certificate is dated, and what came of the chat.
///
/// # Errors
/// Why there is no TLS.
pub(super) fn chat(stream: Connection) -> Result<(Dates, Result<(), Failure>), Failure> {
    // An address is not sent as a name: a client of a port that takes media as well must not ask for a media server's.
    let peer = ServerName::from(stream.peer_addr()?.ip());
    let (stream, shown) = handshake(stream, peer)?;
    Ok((dates(shown.first()), probe::chat(stream)))
}

/// Does TLS through setu with the media server.
///
/// # Errors
/// Why there is no TLS.
pub(super) fn media(stream: Connection) -> Result<Media, Failure> {
    let name = ServerName::try_from(MEDIA_NAME).map_err(|error| Failure::Io(io::Error::other(error)))?;
    let (_, shown) = handshake(stream, name)?;
    let mut roots = RootCertStore::empty();
    // Files that cannot be read hold no authority; what matters is how many there are in all.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    Ok(judge(&shown, roots))
}

fn judge(shown: &[CertificateDer<'_>], roots: RootCertStore) -> Media {
    let Some((first, rest)) = shown.split_first() else {
        return Media::OtherName;
    };
    let name = ServerName::try_from(MEDIA_NAME);
    let named = ParsedCertificate::try_from(first)
        .and_then(|parsed| name.map_err(|_| Error::General("the name".into())).map(|name| (parsed, name)))
        .and_then(|(parsed, name)| verify_server_name(&parsed, &name).map(|()| name));
    let Ok(name) = named else { return Media::OtherName };
    let count = roots.len();
    if count == 0 {
        return Media::NameOnly;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    let verifier = verifier.map_err(|error| Error::General(error.to_string()));
    match verifier.and_then(|verifier| verifier.verify_server_cert(first, rest, &name, &[], UnixTime::now()))
    {
        Ok(_) => Media::Genuine { roots: count },
        Err(Error::InvalidCertificate(CertificateError::NotValidForName)) => Media::OtherName,
        Err(
            error @ Error::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            ),
        ) => Media::Dated(error),
        Err(error) => Media::NotTrusted(error),
    }
}

fn dates(shown: Option<&CertificateDer<'_>>) -> Dates {
    let parsed = shown.and_then(|certificate| Some(parse_x509_certificate(certificate).ok()?.1));
    let Some(validity) = parsed.map(|parsed| parsed.validity().clone()) else { return Dates::Unreadable };
    let at = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    judge_dates(at(validity.not_before), at(validity.not_after), seconds(SystemTime::now()))
}

fn judge_dates(from: u64, until: u64, now: u64) -> Dates {
    if now < from {
        Dates::From(from)
    } else if now > until {
        Dates::Ended(until)
    } else if until - now < RENEW.as_secs() {
        Dates::Soon(until)
    } else {
        Dates::Until(until)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

type Stream = StreamOwned<ClientConnection, Connection>;

/// Does a handshake whatever the certificate, and returns the chain that was shown.
fn handshake(
    mut stream: Connection,
    name: ServerName<'static>,
) -> Result<(Stream, Vec<CertificateDer<'static>>), Failure> {
    let broken = |error: Error| Failure::Io(io::Error::other(error.to_string()));
    let witness = Arc::new(Witness { provider: provider(), shown: Mutex::default() });
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(broken)?
        .dangerous()
        .with_custom_certificate_verifier(witness.clone())
        .with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(broken)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    let shown = std::mem::take(&mut *witness.shown.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((StreamOwned::new(connection, stream), shown))
}

/// Keeps what it is shown, and lets it pass: nothing is said to the other side that must be kept from anyone. That the other
/// side has the certificate's key is checked.
#[derive(Debug)]
struct Witness {
    provider: Arc<CryptoProvider>,
    shown: Mutex<Vec<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        first: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        *shown =
            [first].into_iter().chain(rest).map(|certificate| certificate.clone().into_owned()).collect();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_judged_by_their_dates() {
        let day = 86_400;
        let judge = |now| judge_dates(100 * day, 200 * day, now * day);
        assert_eq!(judge(99), Dates::From(100 * day));
        assert_eq!(judge(150), Dates::Until(200 * day));
        assert_eq!(judge(190), Dates::Soon(200 * day));
        assert_eq!(judge(201), Dates::Ended(200 * day));
    }
}

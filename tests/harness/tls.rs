//! TLS as tests need it: certificates for servers, and a client whose every step and end is seen.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    path::PathBuf,
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tempfile::TempDir;

use crate::servers;

/// A certificate and its key, in files.
#[derive(Debug)]
pub struct Certificate(TempDir);

impl Certificate {
    /// One that signs itself, for these names.
    #[must_use]
    pub fn new(names: &[&str]) -> Self {
        let certificate = Self(tempfile::tempdir().unwrap());
        let names: Vec<_> = names.iter().map(|name| format!("DNS:{name}")).collect();
        let made = servers::run(
            "openssl",
            &[
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=test",
                "-addext",
                &format!("subjectAltName={}", names.join(",")),
                "-keyout",
                certificate.key().to_str().unwrap(),
                "-out",
                certificate.chain().to_str().unwrap(),
            ],
        );
        assert!(made.success, "{made:?}");
        let both = [certificate.chain(), certificate.key()].map(|file| std::fs::read(file).unwrap());
        std::fs::write(certificate.both(), both.concat()).unwrap();
        certificate
    }

    /// The certificate.
    #[must_use]
    pub fn chain(&self) -> PathBuf {
        self.0.path().join("chain.pem")
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.0.path().join("key.pem")
    }

    /// Both in one file, as HAProxy wants them.
    #[must_use]
    pub fn both(&self) -> PathBuf {
        self.0.path().join("both.pem")
    }
}

/// A client's settings that take any certificate, as the app does.
#[must_use]
pub fn client(version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Arc::new(config)
}

/// A client's connection after the handshake.
#[derive(Debug)]
pub struct Tls {
    session: ClientConnection,
    tcp: TcpStream,
}

impl Tls {
    /// Does the handshake; an address as the name is not sent.
    ///
    /// # Errors
    /// The server refused, or went away.
    pub fn connect(config: &Arc<ClientConfig>, name: &str, mut tcp: TcpStream) -> io::Result<Self> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut session = ClientConnection::new(config.clone(), name).unwrap();
        while session.is_handshaking() {
            session.complete_io(&mut tcp)?;
        }
        Ok(Self { session, tcp })
    }

    /// Sends.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        rustls::Stream::new(&mut self.session, &mut self.tcp).write_all(bytes)
    }

    /// Sends `close_notify` and FIN.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn finish(&mut self) -> io::Result<()> {
        self.session.send_close_notify();
        while self.session.wants_write() {
            self.session.write_tls(&mut self.tcp)?;
        }
        self.tcp.shutdown(Shutdown::Write)
    }

    /// Receives; 0 is the server's `close_notify`.
    ///
    /// # Errors
    /// `UnexpectedEof` is FIN without `close_notify`; else the connection is broken.
    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        rustls::Stream::new(&mut self.session, &mut self.tcp).read(buffer)
    }

    /// What was agreed on by ALPN.
    #[must_use]
    pub fn alpn(&self) -> Option<Vec<u8>> {
        self.session.alpn_protocol().map(<[u8]>::to_vec)
    }

    /// The socket below.
    #[must_use]
    pub fn into_tcp(self) -> TcpStream {
        self.tcp
    }
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

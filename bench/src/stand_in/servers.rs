//! A DNS server, a chat server that wants PROXY protocol, and a media server inside TLS. What comes they send back, but for
//! the hello of a web client, which the chat server answers as WhatsApp's does.

use std::{fs, future::pending, net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use setu_tests::{
    chat::{is_web_client, server_hello},
    dns::{Answer, DnsServer},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    runtime,
};
use tokio_rustls::TlsAcceptor;

use super::MEDIA_HOST;

/// Ports of 127.0.0.1 that setu does not listen on.
const CHAT: &str = "127.0.0.1:15222";
const MEDIA: &str = "127.0.0.1:1443";
/// What WhatsApp's servers are called.
const NAMES: [&str; 3] = ["g.whatsapp.net", "whatsapp.net", MEDIA_HOST];
/// The longest line of PROXY protocol v1, with its end.
const LINE: u64 = 107;

/// Serves until it is killed. Writes the authority that signed the media server's certificate to `authority`, as PEM.
///
/// # Errors
/// An address is taken.
pub(crate) fn run(dns: SocketAddr, authority: &Path) -> Result<()> {
    let dns = DnsServer::at(dns);
    for name in NAMES {
        dns.set(name, Answer::addresses(&["127.0.0.1"], 60));
    }
    let tls = TlsAcceptor::from(tls(authority)?);
    runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let chat = TcpListener::bind(CHAT).await.context(CHAT)?;
        let media = TcpListener::bind(MEDIA).await.context(MEDIA)?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = chat.accept().await {
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let mut line = Vec::new();
                    // A connection without it is closed, and so is one that breaks.
                    let read = (&mut stream).take(LINE).read_until(b'\n', &mut line).await;
                    if read.is_ok() && line.starts_with(b"PROXY TCP") && line.ends_with(b"\r\n") {
                        let _ = answer(stream).await;
                    }
                });
            }
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = media.accept().await {
                let tls = tls.clone();
                tokio::spawn(async move {
                    if let Ok(stream) = tls.accept(stream).await {
                        // An error means that it has ended.
                        let _ = echo(stream).await;
                    }
                });
            }
        });
        pending().await
    })
}

async fn answer(mut stream: BufReader<TcpStream>) -> std::io::Result<()> {
    if is_web_client(stream.fill_buf().await?) {
        stream.write_all(&server_hello()).await?;
        // Its hello, and its end.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        return stream.shutdown().await;
    }
    echo(stream).await
}

async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    let mut buffer = vec![0; 4096];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.shutdown().await,
            count => stream.write_all(&buffer[..count]).await?,
        }
        stream.flush().await?;
    }
}

fn tls(authority: &Path) -> Result<Arc<ServerConfig>> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new([MEDIA_HOST.to_owned()])?.signed_by(&key, &issuer)?;
    fs::write(authority, issuer.pem())?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    let chain = vec![certificate.der().clone()];
    Ok(Arc::new(ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?))
}

//! Opening and ending connections, in the clear and through TLS.

use std::{future::Future, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName},
    version::TLS13,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{SERVER_NAME, pattern};

/// Every wait of a client ends after this.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// How many connections are opened at once: less than any listener's backlog.
const AT_ONCE: usize = 128;

/// A connection in the clear or through TLS.
pub(super) trait Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Connection for T {}

/// Opens a connection.
pub(super) async fn open(to: SocketAddr) -> Result<TcpStream> {
    let stream = timeout(PATIENCE, TcpStream::connect(to)).await.context("connecting takes too long")?;
    let stream = stream.context("connecting failed")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Opens a connection through TLS.
pub(super) async fn open_tls(to: SocketAddr, tls: &TlsConnector) -> Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(SERVER_NAME)?;
    let stream = timeout(PATIENCE, tls.connect(name, open(to).await?)).await;
    stream.context("the handshake takes too long")?.context("the handshake failed")
}

/// Opens many connections, not too many at once; each has carried a message, so that it is there from end to end.
pub(super) async fn open_many<F, C>(count: usize, mut open: impl FnMut() -> F) -> Result<Vec<C>>
where
    F: Future<Output = Result<C>> + Send + 'static,
    C: Connection,
{
    let mut connections = Vec::with_capacity(count);
    while connections.len() < count {
        let mut opening = JoinSet::new();
        for number in connections.len()..count.min(connections.len() + AT_ONCE) {
            let opened = open();
            opening.spawn(async move {
                let mut connection = opened.await?;
                echo(&mut connection, pattern::message(number, 0, 256), &mut Vec::new()).await?;
                Ok(connection)
            });
        }
        connections.extend(results(opening).await?);
    }
    Ok(connections)
}

/// Waits for tasks to end well.
pub(super) async fn results<T: 'static>(mut tasks: JoinSet<Result<T>>) -> Result<Vec<T>> {
    let mut results = Vec::with_capacity(tasks.len());
    while let Some(result) = tasks.join_next().await {
        results.push(result.map_err(|error| anyhow!(error))??);
    }
    Ok(results)
}

/// Sends a message and has it back.
pub(super) async fn echo(stream: &mut impl Connection, message: &[u8], buffer: &mut Vec<u8>) -> Result<()> {
    buffer.resize(message.len(), 0);
    stream.write_all(message).await.context("writing failed")?;
    stream.flush().await?;
    stream.read_exact(buffer).await.context("no answer")?;
    ensure!(buffer == message, "another message came back");
    Ok(())
}

/// For a full handshake each time, alike for all: TLS 1.3 and X25519.
pub(super) fn tls(trust: Option<&Path>) -> Result<TlsConnector> {
    let provider =
        CryptoProvider { kx_groups: vec![aws_lc_rs::kx_group::X25519], ..aws_lc_rs::default_provider() };
    let mut roots = RootCertStore::empty();
    if let Some(file) = trust {
        roots.add(CertificateDer::from(std::fs::read(file)?))?;
    }
    let config = ClientConfig::builder_with_provider(provider.into()).with_protocol_versions(&[&TLS13])?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config).into())
}

/// What a client of TLS sends first, with the name in it.
pub(super) fn client_hello(name: &'static str) -> Result<Vec<u8>> {
    let tls = tls(None)?;
    let mut hello = Vec::new();
    ClientConnection::new(tls.config().clone(), ServerName::try_from(name)?)?.write_tls(&mut hello)?;
    Ok(hello)
}

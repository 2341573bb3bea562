//! From a client's socket to a session whose plaintext can be read: the handshake, and the look at the first bytes.

use std::{future::poll_fn, io, sync::Arc, task::Poll};

use rustls::{HandshakeKind, ProtocolVersion, server};
use thiserror::Error;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    offer::{ALPN, Settings},
    plain::{self, HANDSHAKE, let_go},
    session::{End, Received, Session, SessionError},
};
use crate::{
    account::{CloseReason, Side},
    front::inspect::{
        client_hello::{self, ClientHello, LIMIT},
        peek::{Bounds, More, Undecided, discard, peek_message},
    },
};

/// Why a client's TLS did not come about.
#[derive(Debug, Error)]
pub enum TlsFailure {
    /// The deadline passed.
    #[error("the client did not finish the handshake in time")]
    TimedOut,
    /// The client finished or reset the connection.
    #[error("the client went away: {0}")]
    ClientGone(io::Error),
    /// The client did not begin with TLS. It was answered as a web server answers that.
    #[error("the client does not speak TLS")]
    NotTls,
    /// What the client sent is not TLS, or not TLS that setu speaks. It was told so by an alert.
    #[error("{0}")]
    Protocol(rustls::Error),
}

impl TlsFailure {
    /// The end of the connection.
    #[must_use]
    pub fn close_reason(&self) -> CloseReason {
        match self {
            Self::TimedOut => CloseReason::HandshakeTimeout,
            Self::ClientGone(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                CloseReason::ClientLeft
            }
            Self::ClientGone(error) => CloseReason::broken(Side::Client, error),
            Self::Protocol(_) | Self::NotTls => CloseReason::TlsFailed,
        }
    }
}

impl From<SessionError> for TlsFailure {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Socket(error) => Self::ClientGone(error),
            SessionError::Protocol(error) => Self::Protocol(error),
        }
    }
}

/// A client whose handshake is done.
pub struct Terminated {
    pub(crate) stream: TcpStream,
    pub(crate) session: Session,
    /// Plaintext that came already. It goes to the upstream first.
    pub(crate) first: Vec<u8>,
    /// The client has finished.
    pub(crate) end: Option<End>,
}

/// Does the handshake, for which nothing is made before the client's hello is there. `heard` is told of its first bytes.
/// Nothing may have been taken from the socket; to peek at it is fine.
///
/// # Errors
/// See [`TlsFailure`]. After a breach of the protocol the client gets the alert, then FIN.
pub async fn accept(
    mut stream: TcpStream,
    settings: Arc<Settings>,
    deadline: Instant,
    heard: impl Fn(),
) -> Result<Terminated, TlsFailure> {
    let config = match offer(&stream, deadline, heard).await? {
        Offer::Web => settings.web.clone(),
        Offer::Other => settings.other.clone(),
        Offer::NotTls => {
            plain::refuse_plain(&mut stream, deadline).await;
            return Err(TlsFailure::NotTls);
        }
        Offer::TooLong => {
            // `illegal_parameter`, as OpenSSL answers it.
            alert(&mut stream, 47).await;
            return Err(TlsFailure::Protocol(rustls::Error::General("the hello is too long".into())));
        }
    };
    let session = Session::new(config).map_err(TlsFailure::Protocol)?;
    let mut terminated = Terminated { stream, session, first: Vec::new(), end: None };
    let handshake = async {
        while terminated.session.is_handshaking() {
            terminated.receive().await?;
            if terminated.end.is_some() && terminated.session.is_handshaking() {
                return Err(TlsFailure::ClientGone(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(())
    };
    timeout_at(deadline, handshake).await.map_err(|_| TlsFailure::TimedOut)??;
    Ok(terminated)
}

/// What a client offers.
enum Offer {
    /// TLS, and [`ALPN`] inside.
    Web,
    /// TLS, or what rustls is to judge.
    Other,
    /// No TLS.
    NotTls,
    /// A hello that is longer than is looked at, or in more records.
    TooLong,
}

/// Looks at a client's first bytes.
async fn offer(stream: &TcpStream, deadline: Instant, heard: impl Fn()) -> Result<Offer, TlsFailure> {
    let bounds = Bounds { bytes: LIMIT, deadline };
    let offer = peek_message(stream, bounds, |bytes| {
        heard();
        match bytes {
            [HANDSHAKE, ..] => match client_hello::parse(bytes) {
                ClientHello::Incomplete { least } => Err(More { least }),
                _ => Ok(if offers_web(bytes) { Offer::Web } else { Offer::Other }),
            },
            _ => Ok(Offer::NotTls),
        }
    });
    match offer.await {
        Ok(offer) => Ok(offer),
        Err(Undecided::TimedOut) => {
            discard(stream);
            Err(TlsFailure::TimedOut)
        }
        Err(Undecided::Io(error)) => Err(TlsFailure::ClientGone(error)),
        Err(Undecided::Ended { .. }) => Ok(Offer::Other),
        Err(Undecided::TooLong) => Ok(Offer::TooLong),
    }
}

/// Whether a hello offers [`ALPN`], in rustls' reading.
fn offers_web(mut hello: &[u8]) -> bool {
    let mut acceptor = server::Acceptor::default();
    while matches!(acceptor.read_tls(&mut hello), Ok(1..)) {
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let protocols = accepted.client_hello().alpn();
                return protocols.is_some_and(|mut all| all.any(|one| one == ALPN));
            }
            Err(_) => return false,
        }
    }
    false
}

impl Terminated {
    /// Reads plaintext until `parse`, which is shown all of it, from nothing on, knows what it is. The bytes stay in
    /// place and are relayed. `None`: there was no answer before the deadline, the client's end, or `limit` bytes; the
    /// last read may bring more than that, as much as a read brings.
    ///
    /// # Errors
    /// The client broke the connection, or the protocol.
    pub async fn first_bytes<T>(
        &mut self,
        deadline: Instant,
        limit: usize,
        mut parse: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, TlsFailure> {
        let search = async {
            loop {
                if let Some(found) = parse(&self.first) {
                    return Ok(Some(found));
                }
                if self.end.is_some() || self.first.len() >= limit {
                    return Ok(None);
                }
                self.receive().await?;
            }
        };
        timeout_at(deadline, search).await.unwrap_or(Ok(None))
    }

    /// The version that was agreed on.
    #[must_use]
    pub fn version(&self) -> Option<ProtocolVersion> {
        self.session.version()
    }

    /// Whether a ticket spared the client the full handshake.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.session.kind() == Some(HandshakeKind::Resumed)
    }

    /// Sends what waits, then reads once.
    async fn receive(&mut self) -> Result<(), TlsFailure> {
        let (mut read, mut write) = self.stream.split();
        let (session, first) = (&mut self.session, &mut self.first);
        let received = poll_fn(|cx| {
            // A client that reads nothing is not read from either: that is the backpressure.
            if let Poll::Ready(Err(error)) = session.poll_flush(cx, &mut write) {
                return Poll::Ready(Err(SessionError::Socket(error)));
            }
            if session.is_blocked() {
                return Poll::Pending;
            }
            session.poll_receive(cx, &mut read, &mut write, |_, plaintext| first.extend_from_slice(plaintext))
        })
        .await;
        match received {
            Ok(Received::Some) => Ok(()),
            Ok(Received::Last(end)) => {
                self.end = Some(end);
                Ok(())
            }
            Err(error) => {
                if let SessionError::Protocol(_) = error {
                    let_go(&mut self.stream).await;
                }
                Err(error.into())
            }
        }
    }
}

/// Tells a client that this server is not the one that it named (`unrecognized_name`, RFC 6066, section 3), which it
/// takes for final. Its hello was only looked at.
pub(crate) async fn refuse_name(client: &mut TcpStream) {
    alert(client, 112).await;
}

/// Ends with a fatal alert (RFC 8446, section 6.2) a connection of which nothing is known but a hello.
async fn alert(client: &mut TcpStream, description: u8) {
    // It has room for seven bytes, or is gone.
    let _ = client.try_write(&[21, 3, 3, 0, 2, 2, description]);
    let_go(client).await;
}

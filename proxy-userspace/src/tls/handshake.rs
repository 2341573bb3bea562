//! From a client's socket to a session whose plaintext can be read: the handshake, and the look at the first bytes.

use std::{future::poll_fn, io, os::fd::AsFd as _, pin::Pin, sync::Arc, task::Poll};

use rustls::{HandshakeKind, ProtocolVersion, ServerConfig};
use thiserror::Error;
use tokio::{
    io::AsyncWrite as _,
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::session::{End, Received, Session, SessionError};
use crate::{
    close_reason::{CloseReason, Side},
    sys,
};

/// What a failed client has sent and nobody read is thrown away, up to so many bytes.
const DISCARDED: usize = 256 * 1024;

/// Why a client's TLS did not come about.
#[derive(Debug, Error)]
pub enum TlsFailure {
    /// The deadline passed.
    #[error("the client did not finish the handshake in time")]
    TimedOut,
    /// The client finished or reset the connection.
    #[error("the client went away: {0}")]
    ClientGone(io::Error),
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
            Self::Protocol(_) => CloseReason::TlsFailed,
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

/// Does the handshake. Nothing may have been taken from the socket; to peek at it is fine.
///
/// # Errors
/// See [`TlsFailure`]. After a breach of the protocol the client gets the alert, then FIN.
pub async fn accept(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    deadline: Instant,
) -> Result<Terminated, TlsFailure> {
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
    const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
    // A client of which nothing is known but a hello has room for seven bytes, or is gone.
    let _ = client.try_write(&ALERT);
    let_go(client).await;
}

/// Sends FIN to a client that was sent an alert. Unread bytes would turn the close into RST, and RST would destroy the
/// alert on its way.
pub(crate) async fn let_go(stream: &mut TcpStream) {
    // The client may be gone already.
    let _ = poll_fn(|cx| Pin::new(&mut *stream).poll_shutdown(cx)).await;
    sys::discard(stream.as_fd(), DISCARDED);
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::Shutdown,
        time::Duration,
    };

    use rustls::version::{TLS12, TLS13};

    use super::*;
    use crate::{
        config::Timeouts,
        tls::testing::{PATIENCE, Proxy, TIMEOUTS, client, handshake, ping},
    };

    #[test]
    fn what_is_not_tls_gets_an_alert_and_fin() {
        let proxy = Proxy::start(TIMEOUTS);
        for bytes in
            [&b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"[..], &[0; 300], b"WA\x06\x03", &[0x16; 70_000]]
        {
            let mut tcp = proxy.tcp();
            // The proxy may have enough before it has everything.
            let _ = tcp.write_all(bytes);
            let _ = tcp.shutdown(Shutdown::Write);
            let mut answer = Vec::new();
            tcp.read_to_end(&mut answer).unwrap();
            let reason = proxy.reason();
            assert_eq!((answer.first(), answer.len()), (Some(&21), 7), "{answer:?}");
            assert_eq!(reason, CloseReason::TlsFailed);
        }
    }

    #[test]
    fn a_message_without_end_is_not_kept() {
        let proxy = Proxy::start(TIMEOUTS);
        let mut tcp = proxy.tcp();
        // A ClientHello of nearly 16 MiB, in records of 16 KiB.
        let mut record = vec![0x16, 3, 1, 0x40, 0];
        record.extend_from_slice(&[1, 0xff, 0xff, 0xff]);
        record.resize(5 + 0x4000, 0);
        for _ in 0..1000 {
            if tcp.write_all(&record).is_err() {
                break;
            }
            record[5..9].fill(0);
        }
        assert_eq!(proxy.reason(), CloseReason::TlsFailed);
    }

    #[test]
    fn a_hello_with_any_byte_wrong_is_an_end_like_others() {
        let proxy = Proxy::start(TIMEOUTS);
        let mut hello = Vec::new();
        let name = "chat.example".try_into().unwrap();
        rustls::ClientConnection::new(client(&TLS13), name).unwrap().write_tls(&mut hello).unwrap();
        let mut refused = 0;
        for place in 0..hello.len() {
            let mut wrong = hello.clone();
            wrong[place] ^= 0x55;
            let mut tcp = proxy.tcp();
            // The proxy may have enough before it has everything.
            let _ = tcp.write_all(&wrong);
            let _ = tcp.shutdown(Shutdown::Write);
            match proxy.reason() {
                CloseReason::TlsFailed => refused += 1,
                // Nothing that matters was wrong, or the length, so that the rest was awaited.
                reason => assert_eq!(reason, CloseReason::ClientLeft, "{place}"),
            }
        }
        assert!(refused > 10, "{refused} of {}", hello.len());
    }

    #[test]
    fn a_client_that_stalls_or_leaves_is_named() {
        let proxy = Proxy::start(Timeouts { connect: Duration::from_millis(200), ..TIMEOUTS });
        let stalled = proxy.tcp();
        assert_eq!(proxy.reason(), CloseReason::HandshakeTimeout);
        drop(stalled);
        drop(proxy.tcp());
        assert_eq!(proxy.reason(), CloseReason::ClientLeft);
    }

    #[test]
    fn a_hello_may_be_peeked_at_and_come_byte_by_byte() {
        for version in [&TLS12, &TLS13] {
            let proxy = Proxy::start(TIMEOUTS);
            let config = client(version);
            let mut hello = Vec::new();
            let name = "chat.example".try_into().unwrap();
            let mut connection = rustls::ClientConnection::new(config.clone(), name).unwrap();
            connection.write_tls(&mut hello).unwrap();
            let mut tcp = proxy.tcp();
            tcp.set_nodelay(true).unwrap();
            for byte in &hello {
                tcp.write_all(&[*byte]).unwrap();
            }
            let mut client = rustls::StreamOwned::new(connection, tcp);
            while client.conn.is_handshaking() {
                client.conn.complete_io(&mut client.sock).unwrap();
            }
            ping(&mut client, &mut proxy.accept());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let state = tempfile::tempdir().unwrap();
        let acceptor = crate::tls::testing::acceptor(state.path());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let peer = std::thread::spawn(move || handshake(&client(&TLS13), tcp));
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let terminated = runtime.block_on(async {
            let stream = TcpStream::from_std(stream).unwrap();
            assert!(stream.peek(&mut [0; 5]).await.unwrap() > 0);
            accept(stream, acceptor.config(), Instant::now() + PATIENCE).await.unwrap()
        });
        assert_eq!((terminated.version(), terminated.is_resumed()), (Some(ProtocolVersion::TLSv1_3), false));
        peer.join().unwrap();
    }

    #[test]
    fn the_first_bytes_are_looked_at_and_relayed_once() {
        let proxy = Proxy::start_with(TIMEOUTS, |mut terminated| async {
            let parse = |bytes: &[u8]| (bytes.len() >= 4).then(|| bytes.starts_with(b"WA"));
            let deadline = Instant::now() + Duration::from_millis(400);
            match terminated.first_bytes(deadline, 1000, parse).await {
                Ok(Some(true)) => Ok(terminated),
                Ok(Some(false)) => Err(CloseReason::DestinationRefused),
                Ok(None) => Err(CloseReason::Shutdown),
                Err(failure) => Err(failure.close_reason()),
            }
        });
        let config = client(&TLS13);
        let mut chat = handshake(&config, proxy.tcp());
        for byte in b"WA\x06\x03 and more" {
            chat.write_all(&[*byte]).unwrap();
        }
        let mut upstream = proxy.accept();
        chat.write_all(b", all").unwrap();
        chat.conn.send_close_notify();
        chat.flush().unwrap();
        let mut received = Vec::new();
        upstream.read_to_end(&mut received).unwrap();
        assert_eq!(received, b"WA\x06\x03 and more, all");
        drop(upstream);
        assert_eq!(proxy.reason(), CloseReason::ClientClosed);

        // Another protocol; too few bytes and then silence; too few bytes and then the end.
        let mut other = handshake(&config, proxy.tcp());
        other.write_all(b"GET /").unwrap();
        assert_eq!(proxy.reason(), CloseReason::DestinationRefused);
        let mut silent = handshake(&config, proxy.tcp());
        silent.write_all(b"WA").unwrap();
        assert_eq!(proxy.reason(), CloseReason::Shutdown);
        let mut brief = handshake(&config, proxy.tcp());
        brief.write_all(b"WA").unwrap();
        brief.sock.shutdown(Shutdown::Write).unwrap();
        assert_eq!(proxy.reason(), CloseReason::Shutdown);
    }
}

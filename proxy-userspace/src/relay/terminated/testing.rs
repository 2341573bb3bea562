//! What the tests of TLS that ends here share: a proxy of one listener on a thread of its own, and clients.

use std::{
    future::Future,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, mpsc},
    thread,
};

use rustls::{ClientConfig, ClientConnection, StreamOwned, SupportedProtocolVersion};
use tokio::time::Instant;

use super::relay;
use crate::{
    account::{CloseReason, Counters, Ticket},
    config::{Timeouts, testing::PATIENCE},
    front::tls::{Acceptor, Terminated, accept, testing::acceptor},
};

pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A proxy and the upstream before which it stands. It serves until it is dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) upstream: TcpListener,
    reasons: mpsc::Receiver<CloseReason>,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Proxy {
    pub(crate) fn start(timeouts: Timeouts) -> Self {
        Self::start_with(timeouts, |terminated| async { Ok(terminated) })
    }

    /// `between` runs after the handshake and before the upstream is dialed.
    pub(crate) fn start_with<F>(
        timeouts: Timeouts,
        between: impl Fn(Terminated) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Terminated, CloseReason>>,
    {
        let state = tempfile::tempdir().unwrap();
        Self::start_all(acceptor(state.path()), timeouts, between)
    }

    /// Clients are shown the certificate of `acceptor`.
    pub(crate) fn start_with_acceptor(acceptor: Arc<Acceptor>, timeouts: Timeouts) -> Self {
        Self::start_all(acceptor, timeouts, |terminated| async { Ok(terminated) })
    }

    fn start_all<F>(
        acceptor: Arc<Acceptor>,
        timeouts: Timeouts,
        between: impl Fn(Terminated) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Terminated, CloseReason>>,
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = upstream.local_addr().unwrap();
        let (sender, reasons) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let tasks = tokio::task::LocalSet::new();
            let between = std::rc::Rc::new(between);
            let serve = async move {
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    client.set_nodelay(true).unwrap();
                    let (config, timeouts, between) = (acceptor.config(), timeouts.clone(), between.clone());
                    let sender = sender.clone();
                    tokio::task::spawn_local(async move {
                        let terminated =
                            accept(client, config, Instant::now() + timeouts.connect, || {}).await;
                        let reason = match terminated.map_err(|failure| failure.close_reason()) {
                            Ok(terminated) => match between(terminated).await {
                                Ok(terminated) => {
                                    let upstream = tokio::net::TcpStream::connect(target).await.unwrap();
                                    let counters = Arc::<Counters>::default();
                                    let mut ticket = Ticket::new(counters.clone(), counters.listener("test"));
                                    relay(terminated, upstream, &mut ticket, &timeouts, &counters).await
                                }
                                Err(reason) => reason,
                            },
                            Err(reason) => reason,
                        };
                        // The test may be over.
                        let _ = sender.send(reason);
                    });
                }
            };
            tasks.block_on(&runtime, async {
                tokio::select! {
                    () = serve => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, upstream, reasons, _stop: stop }
    }

    /// A connection all the way: the client's end, and the upstream's.
    pub(crate) fn connect(&self, config: &Arc<ClientConfig>) -> (Tls, TcpStream) {
        let client = handshake(config, self.tcp());
        (client, self.accept())
    }

    pub(crate) fn tcp(&self) -> TcpStream {
        let tcp = TcpStream::connect(self.address).unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        tcp
    }

    pub(crate) fn accept(&self) -> TcpStream {
        let (upstream, _) = self.upstream.accept().unwrap();
        upstream.set_nodelay(true).unwrap();
        upstream.set_read_timeout(Some(PATIENCE)).unwrap();
        upstream
    }

    /// How the next connection to end ended.
    pub(crate) fn reason(&self) -> CloseReason {
        self.reasons.recv_timeout(PATIENCE).unwrap()
    }
}

/// A client that takes any certificate, as the app does, and whose keys a test may have.
pub(crate) fn client(version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    let mut config = ClientConfig::clone(&setu_tests::tls::client(version));
    config.enable_secret_extraction = true;
    Arc::new(config)
}

pub(crate) fn handshake(config: &Arc<ClientConfig>, tcp: TcpStream) -> Tls {
    let connection = ClientConnection::new(config.clone(), "chat.example".try_into().unwrap()).unwrap();
    let mut client = StreamOwned::new(connection, tcp);
    while client.conn.is_handshaking() {
        client.conn.complete_io(&mut client.sock).unwrap();
    }
    client
}

/// One message each way.
pub(crate) fn ping(client: &mut Tls, upstream: &mut TcpStream) {
    let mut buffer = [0; 4];
    client.write_all(b"ping").unwrap();
    upstream.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"ping");
    upstream.write_all(b"pong").unwrap();
    client.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"pong");
}

/// Bytes of which none is like its neighbour's neighbour's.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = vec![0; len];
    for byte in &mut bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 56) as u8;
    }
    bytes
}

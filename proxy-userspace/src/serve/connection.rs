//! The way of one connection: accept → identify → inspect → route → dial → relay → [`CloseReason`].
//!
//! Each stage consumes the type of the one before, so that none can be left out or done twice. A stage that fails ends
//! the connection with its reason.

use std::{
    io,
    net::{self, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncWriteExt as _, Interest},
    net::TcpStream,
    time::Instant,
};
use zeroize::Zeroizing;

use super::shared::Worker;
use crate::{
    account::{ClientAddr, CloseReason, Path, Side, Ticket, forget_copies},
    config::{Config, Listener, Mode, SendProxyProtocol},
    front::{
        inspect::{
            LIMIT,
            peek::{self, Bounds, Undecided, peek},
        },
        limits::{Permit, Voice},
        opening::{Rules, Stream, Wish},
        proxy_protocol::{self, Command, Parsed},
        route::{self, Destination},
        tls,
    },
    relay::{self, terminated},
    upstream::{Lease, PortLease},
};

/// Where servers that a client names are dialed.
const HTTPS: u16 = 443;

/// A client that was let in and is not served yet. It counts as a connection, so nobody stops without it.
#[derive(Debug)]
pub(crate) struct Admitted<S> {
    /// A `std` one on its way from worker to worker, for it is in neither's epoll.
    client: S,
    peer: ClientAddr,
    listener: usize,
    ticket: Ticket,
    /// Its place among all and among its source's, which it has to the end.
    permit: Permit,
}

/// A client's connection, of which nothing is known but where it came in.
struct Accepted {
    client: TcpStream,
    peer: ClientAddr,
    /// When it came: all that is before the relay has its time from then on.
    since: Instant,
}

/// It is known for whom the connection speaks.
struct Identified {
    client: TcpStream,
    origin: Origin,
    since: Instant,
}

/// It is known what the client wants.
struct Inspected {
    client: Stream,
    wish: Wish,
    origin: Origin,
}

/// It is known where that is.
struct Routed {
    client: Stream,
    destination: Destination,
    origin: Origin,
}

/// Both legs are connected, and the upstream has heard of the client what it is to hear.
struct Dialed {
    client: Stream,
    upstream: TcpStream,
    /// What goes with the upstream's connection.
    held: (Option<Lease>, Option<PortLease>),
}

/// The ends of the client's connection, for upstreams that are told.
struct Origin {
    source: ClientAddr,
    /// Where the client connected to, if a PROXY header says so; else the socket knows.
    destination: Option<SocketAddr>,
}

/// A client that is not served, with what is to be done about that.
struct TurnedAway {
    client: Stream,
    reason: CloseReason,
}

impl Accepted {
    /// Reads the PROXY header, where there is one. Its source is counted in place of the sender.
    async fn identify(
        self,
        listener: &Listener,
        worker: &Worker,
        ticket: &mut Ticket,
        permit: &mut Permit,
    ) -> Result<Identified, CloseReason> {
        let Self { client, peer, since } = self;
        let config = &worker.shared.config;
        let deadline = since + config.timeouts.inspect;
        if !listener.accept_proxy_protocol {
            return Ok(Identified { client, origin: Origin { source: peer, destination: None }, since });
        }
        let trusted = config.trusted.contains(peer.expose().ip());
        // A port that takes everything takes clients without a header, too, and from others than proxies only those.
        let optional = matches!(listener.mode, Mode::Auto { .. });
        if !optional {
            ticket.listener().came(trusted);
        }
        if !trusted && !optional {
            return Err(CloseReason::ProxyUntrusted);
        }
        let header = if trusted { read_header(&client, deadline, optional).await? } else { None };
        let is_client = !matches!(header, Some(Speaker::Proxy));
        let origin = match header {
            Some(Speaker::Client(origin)) => origin,
            _ => Origin { source: peer, destination: None },
        };
        // A proxy that speaks for itself checks whether setu is there: that is no client's connection.
        if is_client {
            ticket.client = origin.source.shown(config.client_addresses);
            permit.charge(&origin.source, std::time::Instant::now())?;
        }
        Ok(Identified { client, origin, since })
    }
}

impl Identified {
    /// Looks at the first bytes.
    async fn inspect(
        self,
        listener: &Listener,
        worker: &Worker,
        voice: &Voice,
    ) -> Result<Inspected, CloseReason> {
        let config = &worker.shared.config;
        let rules = Rules {
            mode: listener.mode,
            dial: listener.dial,
            handshake: self.since + config.timeouts.handshake,
            voice,
            media: &config.allowed_names,
            acceptor: worker.shared.acceptor.as_deref(),
        };
        let (client, wish) = rules.inspect(self.client, self.since + config.timeouts.inspect).await?;
        Ok(Inspected { client, wish, origin: self.origin })
    }
}

impl Inspected {
    /// Chooses where to go.
    fn route(self, listener: &Listener, config: &Config) -> Result<Routed, Box<TurnedAway>> {
        match route::route(listener.mode, self.wish, config) {
            Ok(destination) => Ok(Routed { client: self.client, destination, origin: self.origin }),
            Err(reason) => Err(Box::new(TurnedAway { client: self.client, reason })),
        }
    }
}

impl TurnedAway {
    /// Tells the client, where its protocol has a word for it. At a port where TLS is spoken a web server tells it.
    async fn dismiss(self, mode: Mode, patience: Duration) -> CloseReason {
        match (self.client, self.reason) {
            (Stream::Plain(mut client), CloseReason::NameRefused) => tls::refuse_name(&mut client).await,
            (Stream::Plain(mut client), _) if matches!(mode, Mode::Auto { .. }) => {
                tls::refuse_plain(&mut client, Instant::now() + patience).await;
            }
            (Stream::Plain(_), _) => {}
            // The reason for which it got there stays, however that ends.
            (Stream::Terminated(mut client), _) => drop(client.show_nothing(patience).await),
        }
        self.reason
    }
}

impl Routed {
    /// Connects, and sends the PROXY header where the upstream gets one. For a client that resets meanwhile nothing is
    /// dialed any more: an attempt that is given up leaves no TIME_WAIT.
    async fn dial(self, worker: &Worker, listener: usize) -> Result<Dialed, CloseReason> {
        let Self { client, destination, origin } = self;
        let (config, upstreams) = (&worker.shared.config, &worker.shared.upstreams);
        let dialing = async {
            let plain = match &client {
                Stream::Plain(client) => Some(client),
                Stream::Terminated(_) => None,
            };
            Ok::<_, CloseReason>(match destination {
                Destination::Upstream(id) => {
                    let send = config.upstream(id).send_proxy_protocol;
                    (upstreams.dial(id, plain).await?, send)
                }
                Destination::Name(id, name) => {
                    let dialed = upstreams.dial_name(id, name.as_str(), HTTPS, plain).await?;
                    (dialed, SendProxyProtocol::Off)
                }
                Destination::Fallback(address) => {
                    (upstreams.dial_fallback(address).await?, SendProxyProtocol::Off)
                }
            })
        };
        let (dialed, send) = tokio::select! {
            biased;
            dialed = dialing => dialed?,
            reason = is_reset(client.socket()) => return Err(reason),
        };
        if let Some(taken) = dialed.shorter {
            worker.shared.segments.lower(listener, taken);
        }
        // Not in what dials: as deep on the stack as that is nobody overwrites what it leaves.
        let header = origin.header(send, &client);
        let mut upstream = dialed.stream;
        if let Some(header) = header {
            let sent = upstream.write_all(&header).await;
            sent.map_err(|error| CloseReason::broken(Side::Upstream, &error))?;
        }
        Ok(Dialed { client, upstream, held: (dialed.lease, dialed.port) })
    }
}

impl Origin {
    /// The PROXY header that tells an upstream of the client. `None` where it is not to be told, or the socket is gone.
    fn header(self, send: SendProxyProtocol, client: &Stream) -> Option<Zeroizing<Vec<u8>>> {
        let encode = match send {
            SendProxyProtocol::Off => return None,
            SendProxyProtocol::V1 => proxy_protocol::encode_v1,
            SendProxyProtocol::V2 => proxy_protocol::encode_v2,
        };
        let destination = self.destination.or_else(|| client.socket().local_addr().ok())?;
        Some(encode(self.source.expose(), destination))
    }
}

impl Dialed {
    /// Moves the bytes until the end, in the kernel if it can be.
    async fn relay(self, listener: usize, mut ticket: Ticket, permit: Permit, worker: &Worker) {
        let Self { client, upstream, held } = self;
        ticket.hold((permit, held));
        let (timeouts, counters) = (&worker.shared.config.timeouts, &worker.shared.counters);
        prepare(&upstream);
        match client {
            Stream::Plain(client) => {
                relay::relay(client, upstream, listener, ticket, worker.means()).await;
            }
            Stream::Terminated(terminated) => {
                ticket.set_path(Path::Userspace);
                let relay = terminated::relay(*terminated, upstream, &mut ticket, timeouts, counters);
                let reason = Box::pin(relay).await;
                ticket.close(reason);
            }
        }
    }
}

/// Lets a client in, or turns it away before any work is done for it.
pub(crate) fn admit(
    client: TcpStream,
    peer: ClientAddr,
    listener: usize,
    worker: &Worker,
) -> Option<Admitted<TcpStream>> {
    let mut ticket = worker.ticket(listener);
    ticket.client = peer.shown(worker.shared.config.client_addresses);
    let limits = &worker.shared.limits;
    let permit = if worker.shared.config.listeners[listener].accept_proxy_protocol {
        limits.admit_unknown()
    } else {
        limits.admit(&peer, std::time::Instant::now())
    };
    match permit {
        Ok(permit) => Some(Admitted { client, peer, listener, ticket, permit }),
        Err(refused) => {
            reset(&client);
            ticket.close(refused.into());
            None
        }
    }
}

impl Admitted<TcpStream> {
    /// Serves the client on the worker that calls.
    pub(crate) fn begin(self, worker: Arc<Worker>) {
        let Self { client, peer, listener, ticket, permit } = self;
        tokio::spawn(serve(
            Accepted { client, peer, since: Instant::now() },
            listener,
            permit,
            ticket,
            worker,
        ));
    }

    /// Leaves the worker that accepted it. `None`: it could not, and is closed.
    pub(crate) fn leave(self) -> Option<Admitted<net::TcpStream>> {
        let Self { client, peer, listener, ticket, permit } = self;
        match client.into_std() {
            Ok(client) => Some(Admitted { client, peer, listener, ticket, permit }),
            Err(_) => {
                ticket.close(CloseReason::OutOfResources);
                None
            }
        }
    }
}

impl Admitted<net::TcpStream> {
    /// Comes to the worker that calls. `None`: it could not, and is closed.
    pub(crate) fn enter(self) -> Option<Admitted<TcpStream>> {
        let Self { client, peer, listener, ticket, permit } = self;
        match TcpStream::from_std(client) {
            Ok(client) => Some(Admitted { client, peer, listener, ticket, permit }),
            Err(_) => {
                ticket.close(CloseReason::OutOfResources);
                None
            }
        }
    }
}

/// Makes the close of a client that is not served an RST, which leaves nothing behind here: no TIME_WAIT, no bytes that
/// wait for the client.
pub(crate) fn reset(client: &TcpStream) {
    // An error means that the connection is gone.
    let _ = SockRef::from(client).set_linger(Some(Duration::ZERO));
}

/// Serves a client to the end. The permit comes before the ticket, so that it is dropped after it: who waits until no
/// connection is left finds all of them counted.
async fn serve(
    accepted: Accepted,
    listener: usize,
    mut permit: Permit,
    mut ticket: Ticket,
    worker: Arc<Worker>,
) {
    let voice = permit.voice();
    // The stages before the relay hold more than the relay does: boxed, their memory is free once they are over.
    let stages = Box::pin(async {
        let config = &worker.shared.config;
        let (number, listener) = (listener, &config.listeners[listener]);
        let identified = accepted.identify(listener, &worker, &mut ticket, &mut permit).await;
        forget_copies();
        let identified = identified?;
        let inspected = identified.inspect(listener, &worker, &voice).await?;
        permit.settled();
        ticket.set_purpose(inspected.wish.purpose());
        match inspected.route(listener, config) {
            Ok(routed) => {
                let dialed = routed.dial(&worker, number).await;
                forget_copies();
                dialed
            }
            Err(turned_away) => Err(turned_away.dismiss(listener.mode, config.timeouts.inspect).await),
        }
    });
    let dialed = tokio::select! {
        biased;
        dialed = stages => dialed,
        () = voice.crowded_out() => Err(CloseReason::CrowdedOut),
    };
    drop(voice);
    match dialed {
        Ok(dialed) => dialed.relay(listener, ticket, permit, &worker).await,
        Err(reason) => ticket.close(reason),
    }
}

/// For whom a PROXY header speaks.
enum Speaker {
    Client(Origin),
    /// The proxy for itself, or for nobody known.
    Proxy,
}

/// What looking for a PROXY header comes to.
enum Found {
    Header { len: usize, speaker: Speaker },
    Malformed { at: usize, what: &'static str },
}

/// Takes a PROXY header out of the client's bytes. `None`: there is none, and it is `optional`.
async fn read_header(
    client: &TcpStream,
    deadline: Instant,
    optional: bool,
) -> Result<Option<Speaker>, CloseReason> {
    let bounds = Bounds { bytes: LIMIT, deadline };
    // Nothing that waits holds an address but in a box of its own.
    let parse = |bytes: &[u8]| match proxy_protocol::parse(bytes) {
        Parsed::Incomplete => None,
        Parsed::Malformed { at, what } => Some(Found::Malformed { at, what }),
        Parsed::Header(header) => {
            let speaker = match header.command {
                Command::Proxied { source, destination } => Speaker::Client(Origin {
                    source: ClientAddr::new(source),
                    destination: Some(destination),
                }),
                Command::Local | Command::Unknown => Speaker::Proxy,
            };
            Some(Found::Header { len: header.len, speaker })
        }
    };
    match peek(client, bounds, parse).await {
        Ok(Found::Header { len, speaker }) => {
            peek::consume(client, len).map_err(|error| CloseReason::broken(Side::Client, &error))?;
            Ok(Some(speaker))
        }
        // What it is instead, the look at the first bytes tells.
        Ok(Found::Malformed { .. }) | Err(Undecided::TimedOut) if optional => Ok(None),
        Ok(Found::Malformed { at, what }) => {
            tracing::debug!(at, what, "no PROXY header");
            Err(CloseReason::ProxyMalformed)
        }
        Err(Undecided::TooLong) => Err(CloseReason::ProxyMalformed),
        Err(undecided) => Err(undecided.into()),
    }
}

/// Ends when the client has reset its connection. Its FIN is another matter: it may wait for the answer.
async fn is_reset(client: &TcpStream) -> CloseReason {
    let error = match client.ready(Interest::ERROR).await {
        Ok(_) => client.take_error().ok().flatten(),
        Err(error) => Some(error),
    };
    CloseReason::broken(Side::Client, &error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()))
}

/// Sets what every leg needs; a client's inherits it from its listening socket.
pub(crate) fn prepare(socket: &impl AsFd) {
    // An error means that the connection is gone, which the relay finds out.
    let _ = SockRef::from(socket).set_tcp_nodelay(true);
    // Urgent data stays where it is in the stream; else the kernel would take it out.
    let _ = SockRef::from(socket).set_out_of_band_inline(true);
}

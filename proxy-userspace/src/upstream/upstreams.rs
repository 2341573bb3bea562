//! All upstreams of a configuration, and how a connection to one comes about.

use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{Instant as Deadline, timeout_at},
};
use tracing::{debug, warn};

use super::{
    destinations::Destinations,
    dns::{self, NameFailure, Names},
    happy_eyeballs::{self, Connected, Sources},
    history::History,
    pool::{Lease, Pool},
    ports::{PortLease, Ports},
    sources::useless_sources,
    splice::Splice,
    status::EndpointStatus,
};
use crate::{
    account::CloseReason,
    config::{self, Config, Endpoint, Host, UpstreamId},
};

/// The least time that an endpoint gets to answer: one SYN may be lost, and is sent again after a second (RFC 6298).
const SHARE_MIN: Duration = Duration::from_millis(1_500);

/// How often endpoints are checked, before jitter. As often as the reference does.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// All upstreams, shared by all workers.
#[derive(Debug)]
pub(crate) struct Upstreams {
    /// By [`UpstreamId`].
    all: Vec<Upstream>,
    pub(super) names: Names,
    pub(super) destinations: Destinations,
    /// Local ports of connections that may go on the wire; `None` where that is not the path.
    ports: Option<Arc<Ports>>,
    /// `timeouts.connect`.
    connect: Duration,
    pub(super) check_interval: Duration,
    /// Whether endpoints of which nothing is known are checked without waiting for that long: setu is not ready before.
    pub(super) checks_at_once: bool,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) pool: Arc<Pool>,
    sources: Sources,
    history: Arc<History>,
}

/// A connection to an upstream.
#[derive(Debug)]
pub(crate) struct Dialed {
    /// The connection.
    pub(crate) stream: TcpStream,
    /// Must live as long as the connection. `None` for a name that a client chose.
    pub(crate) lease: Option<Lease>,
    /// Must live as long as the connection, with its socket or without. `None`: its port is none of the wire's.
    pub(crate) port: Option<PortLease>,
    /// The longest segment that the upstream takes, options included, where the client was not told to send none longer.
    pub(crate) shorter: Option<u32>,
}

/// What became of an attempt to reach an endpoint.
#[derive(Debug)]
pub(crate) struct Examined {
    /// `host:port` of the configuration.
    pub(crate) endpoint: String,
    pub(crate) addresses: Result<Vec<SocketAddr>, CloseReason>,
    pub(crate) connected: Result<(), CloseReason>,
}

/// Resolves and checks, so that connections find what they need.
#[derive(Debug)]
pub(crate) struct Background {
    pub(super) upstreams: Arc<Upstreams>,
    pub(super) requests: mpsc::UnboundedReceiver<dns::Request>,
    pub(super) servers: Vec<SocketAddr>,
    /// Those that clients can come to; the others are left in peace.
    pub(super) used: Vec<UpstreamId>,
}

impl Dialed {
    fn new(
        stream: TcpStream,
        lease: Option<Lease>,
        port: Option<PortLease>,
        splice: Option<&Splice>,
    ) -> Self {
        let shorter = splice.filter(|_| port.is_some()).and_then(|splice| splice.shorter(&stream));
        Self { stream, lease, port, shorter }
    }
}

impl Upstreams {
    /// The upstreams of a configuration. `own`: where setu listens, which is never dialed. Of those of `before`, the
    /// configuration until now, what is known of names stays, the history of each upstream, and the health and connections
    /// of each whose endpoints are the same, and the account of the wire's ports.
    pub(crate) fn new(
        config: &Config,
        own: Vec<SocketAddr>,
        before: Option<&Self>,
    ) -> (Arc<Self>, Background) {
        let now = Instant::now();
        let upstream = |upstream: &crate::config::Upstream| {
            let config::Upstream { name, endpoints, sources, .. } = upstream;
            let before =
                before.and_then(|before| before.all.iter().find(|before| before.pool.name() == name));
            let pool = before.map(|before| &before.pool).filter(|pool| pool.endpoints() == endpoints);
            Upstream {
                pool: pool.cloned().unwrap_or_else(|| Pool::new(name.clone(), endpoints.clone(), now)),
                sources: Sources::new(sources),
                // Of addresses: the endpoints do not matter. Another source may reach what failed from the one of
                // before, but to try that last for some minutes costs nobody anything.
                history: before.map(|before| before.history.clone()).unwrap_or_default(),
            }
        };
        let used =
            (0..config.upstreams.len()).map(UpstreamId).filter(|id| config.is_used(*id)).collect::<Vec<_>>();
        for what in used.iter().flat_map(|id| useless_sources(config.upstream(*id))) {
            warn!("{what}");
        }
        let endpoints = used.iter().flat_map(|id| &config.upstream(*id).endpoints);
        let configured = endpoints.filter_map(|endpoint| match &endpoint.host {
            Host::Name(name) => Some(name.clone()),
            Host::Ip(_) => None,
        });
        let (names, requests) = Names::new(configured, now);
        if let Some(before) = before {
            names.inherit(&before.names);
        }
        let upstreams = Arc::new(Self {
            all: config.upstreams.iter().map(upstream).collect(),
            names,
            destinations: Destinations::new(config.allow_private_upstreams, own),
            ports: match before {
                Some(before) => before.ports.clone(),
                None => config.wire.is_on().then(|| Ports::new(config.wire.ports.clone())),
            },
            connect: config.timeouts.connect,
            check_interval: CHECK_INTERVAL,
            checks_at_once: !config.ready_after.is_zero(),
        });
        let background =
            Background { upstreams: upstreams.clone(), requests, servers: config.dns_servers.clone(), used };
        (upstreams, background)
    }

    /// The local ports of connections that may go on the wire; `None` where that is not the path.
    pub(crate) fn ports(&self) -> Option<&Arc<Ports>> {
        self.ports.as_ref()
    }

    fn splice(&self, client: Option<&TcpStream>) -> Option<Splice> {
        Splice::to(client?, self.ports.as_ref()?)
    }

    /// Connects to the best endpoint that answers, within `timeouts.connect` for all of them together; for a client whose
    /// bytes pass as they are, so that its packets may go there.
    ///
    /// # Errors
    /// The reason for which the client's connection ends: that of the last endpoint tried, or that none was worth it.
    pub(crate) async fn dial(
        &self,
        id: UpstreamId,
        client: Option<&TcpStream>,
    ) -> Result<Dialed, CloseReason> {
        let splice = self.splice(client);
        let pool = &self.get(id).pool;
        let deadline = Deadline::now() + self.connect;
        let mut tried: Vec<usize> = Vec::new();
        let mut reason = CloseReason::UpstreamDown;
        while let Some(mut lease) = pool.lease(&tried, deadline).await {
            // A silent endpoint must leave time for the others.
            let now = Deadline::now();
            let left = deadline.saturating_duration_since(now);
            let others = u32::try_from(pool.endpoints().len() - tried.len()).unwrap_or(u32::MAX);
            let share = (left / others).max(SHARE_MIN).min(left);
            tried.push(lease.member());
            match self.connect_by(now + share, id, lease.endpoint(), splice.as_ref()).await {
                Ok((stream, port)) => {
                    lease.connected(Instant::now());
                    return Ok(Dialed::new(stream, Some(lease), port, splice.as_ref()));
                }
                // Says nothing of the endpoint; and to another one there may be a port left.
                Err(CloseReason::OutOfResources) => reason = CloseReason::OutOfResources,
                Err(failure) => {
                    reason = failure;
                    lease.failed(failure, Instant::now());
                }
            }
            if Deadline::now() >= deadline {
                break;
            }
        }
        Err(reason)
    }

    /// As [`Self::dial`], to a host that the client named, from the sources of an upstream. Whether the name is allowed is the
    /// caller's affair; its addresses are judged here.
    ///
    /// # Errors
    /// The reason for which the client's connection ends.
    pub(crate) async fn dial_name(
        &self,
        id: UpstreamId,
        host: &str,
        port: u16,
        client: Option<&TcpStream>,
    ) -> Result<Dialed, CloseReason> {
        let (endpoint, splice) = (Endpoint { host: Host::Name(host.into()), port }, self.splice(client));
        let deadline = Deadline::now() + self.connect;
        let (stream, port) = self.connect_by(deadline, id, &endpoint, splice.as_ref()).await?;
        Ok(Dialed::new(stream, None, port, splice.as_ref()))
    }

    /// Connects to the operator's own web server, wherever it is.
    ///
    /// # Errors
    /// The reason for which the client's connection ends.
    pub(crate) async fn dial_fallback(&self, address: SocketAddr) -> Result<Dialed, CloseReason> {
        let deadline = Deadline::now() + self.connect;
        let (sources, history) = (Sources::new(&[]), History::default());
        match timeout_at(deadline, happy_eyeballs::connect(&[address], &sources, &history, None)).await {
            Ok(Ok((stream, port))) => Ok(Dialed::new(stream, None, port, None)),
            Ok(Err(error)) => Err(CloseReason::connect(&error)),
            Err(_elapsed) => Err(CloseReason::ConnectTimeout),
        }
    }

    /// What is known of every endpoint, in the order of the configuration.
    pub(crate) fn status(&self) -> Vec<EndpointStatus> {
        self.all.iter().flat_map(|upstream| upstream.pool.status()).collect()
    }

    /// What becomes of an attempt to reach each endpoint: its addresses, and whether one of them answered.
    pub(crate) async fn examine(&self, id: UpstreamId) -> Vec<Examined> {
        let mut all = Vec::new();
        for endpoint in self.get(id).pool.endpoints() {
            let deadline = Deadline::now() + self.connect;
            let resolved = timeout_at(deadline, self.resolve(endpoint)).await;
            let addresses = resolved.unwrap_or(Err(CloseReason::ResolveFailed));
            let connected = match &addresses {
                Ok(_) => self.connect(id, endpoint).await.map(drop),
                Err(reason) => Err(*reason),
            };
            all.push(Examined { endpoint: endpoint.to_string(), addresses, connected });
        }
        all
    }

    /// Lookups that failed, by reason.
    pub(crate) fn name_failures(&self) -> [(NameFailure, u64); NameFailure::ALL.len()] {
        NameFailure::ALL.map(|failure| (failure, self.names.failures(failure)))
    }

    /// Connections that used an address past its time, because no resolver gave a better one.
    pub(crate) fn stale_answers(&self) -> u64 {
        self.names.stale()
    }

    pub(super) fn get(&self, id: UpstreamId) -> &Upstream {
        &self.all[id.0]
    }

    pub(super) async fn connect(
        &self,
        id: UpstreamId,
        endpoint: &Endpoint,
    ) -> Result<TcpStream, CloseReason> {
        Ok(self.connect_by(Deadline::now() + self.connect, id, endpoint, None).await?.0)
    }

    async fn connect_by(
        &self,
        deadline: Deadline,
        id: UpstreamId,
        endpoint: &Endpoint,
        splice: Option<&Splice>,
    ) -> Result<Connected, CloseReason> {
        let resolved = timeout_at(deadline, self.resolve(endpoint)).await;
        let mut addresses = resolved.unwrap_or(Err(CloseReason::ResolveFailed))?;
        addresses.retain(|address| self.destinations.allow(*address));
        if addresses.is_empty() {
            debug!(endpoint = %self.told(endpoint), "every address is refused");
            return Err(CloseReason::DestinationRefused);
        }
        let Upstream { sources, history, .. } = self.get(id);
        match timeout_at(deadline, happy_eyeballs::connect(&addresses, sources, history, splice)).await {
            Ok(Ok(connected)) => Ok(connected),
            Ok(Err(error)) => {
                debug!(endpoint = %self.told(endpoint), %error, "not connected");
                Err(CloseReason::connect(&error))
            }
            Err(_elapsed) => Err(CloseReason::ConnectTimeout),
        }
    }

    /// What logs may tell of an endpoint: one that a client named tells of the client.
    fn told<'a>(&self, endpoint: &'a Endpoint) -> &'a dyn fmt::Display {
        let is_configured = self.all.iter().any(|upstream| upstream.pool.endpoints().contains(endpoint));
        if is_configured { endpoint } else { &"of a client's choice" }
    }

    async fn resolve(&self, endpoint: &Endpoint) -> Result<Vec<SocketAddr>, CloseReason> {
        let at_port = |ip| SocketAddr::new(ip, endpoint.port);
        match &endpoint.host {
            Host::Ip(ip) => Ok(vec![at_port(*ip)]),
            Host::Name(name) => match self.names.addresses(name).await {
                Ok(addresses) => Ok(addresses.iter().copied().map(at_port).collect()),
                Err(NameFailure::Refused) => Err(CloseReason::DestinationRefused),
                Err(failure) => {
                    debug!(endpoint = %self.told(endpoint), reason = failure.name(), "name not resolved");
                    Err(CloseReason::ResolveFailed)
                }
            },
        }
    }
}

#[cfg(test)]
mod tests;

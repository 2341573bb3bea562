//! Asks name servers, by way of hickory: one after the other as resolv.conf(5) has it, not all at once for the first word
//! of any. What one server knows another may deny, and mean it: those of a company and of the world are often listed
//! together.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    num::NonZero,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_resolver::{
    Resolver as Hickory,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{
        NetError,
        runtime::{RuntimeProvider, TokioRuntimeProvider},
    },
    proto::rr::RecordType,
};
use socket2::{Domain, Socket, Type};
use tokio::{net::UdpSocket, time::timeout};

use super::{
    answer::{Found, NameFailure},
    system::Resolvers,
};

/// How long UDP is silent before the question is asked by TCP as well: firewalls drop the one or the other.
const TCP_AFTER: Duration = Duration::from_secs(2);
/// How long a server is silent before the next is asked as well, unless the system's configuration has less patience.
const NEXT_AFTER: Duration = Duration::from_secs(2);
/// For a lookup in all, whatever the system's configuration allows.
const LOOKUP_MAX: Duration = Duration::from_secs(20);
/// How long the answer for one family is held back when the other's is not there.
pub(super) const SECOND_FAMILY: Duration = Duration::from_millis(500);
/// How long an answer is worth something of which one family is missing because nobody answered in time: it must not be
/// hidden for as long as the other is good for.
pub(super) const HALF: Duration = Duration::from_secs(30);

/// What a server says of one family.
type Said = Result<Lookup, NetError>;

/// Name servers.
#[derive(Clone)]
pub(super) struct Dns {
    /// In the order in which they are asked.
    servers: Arc<[Server]>,
    /// Where `rotate` makes each the first in turn: whose turn it is.
    turn: Option<Arc<AtomicUsize>>,
    /// How often all are asked.
    attempts: usize,
    /// How long one may be silent before the next is asked.
    pause: Duration,
    /// For a lookup in all.
    patience: Duration,
}

/// One of them, by both protocols.
struct Server {
    /// `None` when only TCP is wanted.
    udp: Option<Hickory<Zoned>>,
    tcp: Hickory<Zoned>,
    /// For one attempt.
    patience: Duration,
}

impl Dns {
    /// # Errors
    /// A server cannot be used.
    pub(super) fn new(resolvers: &Resolvers) -> Result<Self, NetError> {
        let servers = resolvers.servers.iter().map(|address| Server::new(*address, resolvers));
        let servers: Arc<[_]> = servers.collect::<Result<_, _>>()?;
        let times = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let pause = NEXT_AFTER.min(resolvers.timeout);
        let others = pause.saturating_mul(times(servers.len().saturating_sub(1)));
        let attempts = resolvers.timeout.saturating_mul(times(resolvers.attempts));
        let patience = attempts.saturating_add(others).saturating_add(TCP_AFTER).min(LOOKUP_MAX);
        let turn = resolvers.rotate.then(Arc::default);
        Ok(Self { servers, turn, attempts: resolvers.attempts, pause, patience })
    }

    /// The servers as this lookup asks them.
    fn in_turn(&self) -> Vec<&Server> {
        let turn = self.turn.as_ref().map_or(0, |turn| turn.fetch_add(1, Ordering::Relaxed));
        let (before, from) = self.servers.split_at(turn % self.servers.len().max(1));
        from.iter().chain(before).collect()
    }

    /// Asks for the addresses of both families. When only one is there in good time, `early` is told of it.
    pub(super) async fn both_families(
        &self,
        name: &str,
        early: &mut impl FnMut(Found),
    ) -> Result<Found, NameFailure> {
        let servers = self.in_turn();
        let v6 = self.ask(&servers, name, RecordType::AAAA);
        let v4 = self.ask(&servers, name, RecordType::A);
        tokio::pin!(v6, v4);
        // The family that comes first does not wait long for the other, unless it has nothing.
        let (v6, v4) = tokio::select! {
            v6 = &mut v6 => {
                let v4 = second(&v6, v4, early).await;
                (v6, v4)
            }
            v4 = &mut v4 => {
                let v6 = second(&v4, v6, early).await;
                (v6, v4)
            }
        };
        found(&[&v6, &v4])
    }

    /// Asks for one family.
    async fn ask(&self, servers: &[&Server], name: &str, family: RecordType) -> Said {
        let asked = async {
            for _ in 1..self.attempts {
                let said = self.one_by_one(servers, name, family).await;
                if is_final(&said) {
                    return said;
                }
            }
            self.one_by_one(servers, name, family).await
        };
        timeout(self.patience, asked).await.unwrap_or(Err(NetError::Timeout))
    }

    /// Asks the first, and the next when it fails or is silent. An address is taken from whoever has it; that there is none
    /// only from the first who answers.
    fn one_by_one<'a>(
        &'a self,
        servers: &'a [&'a Server],
        name: &'a str,
        family: RecordType,
    ) -> Pin<Box<dyn Send + Future<Output = Said> + 'a>> {
        Box::pin(async move {
            let Some((server, next)) = servers.split_first() else { return Err(NetError::NoConnections) };
            let first = server.ask(name, family);
            if next.is_empty() {
                return first.await;
            }
            tokio::pin!(first);
            match timeout(self.pause, &mut first).await {
                Ok(said) if is_final(&said) => return said,
                Ok(_) => return self.one_by_one(next, name, family).await,
                Err(_) => {}
            }
            let mut later = self.one_by_one(next, name, family);
            tokio::select! {
                said = &mut first => if is_final(&said) { said } else { later.await },
                said = &mut later => match said {
                    Ok(found) => Ok(found),
                    Err(error) => {
                        let first = first.await;
                        if is_final(&first) { first } else { Err(error) }
                    }
                },
            }
        })
    }
}

/// Whether there is nothing to learn from another server. One that cannot say, or will not, knows nothing of the name.
fn is_final(said: &Said) -> bool {
    said.as_ref().map_or_else(NetError::is_no_records_found, |_| true)
}

impl Server {
    fn new(address: SocketAddr, resolvers: &Resolvers) -> Result<Self, NetError> {
        let by = |connections: &[fn() -> ConnectionConfig]| {
            let at_port = |connection: &fn() -> ConnectionConfig| {
                let mut connection = connection();
                connection.port = address.port();
                connection
            };
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            server.connections = connections.iter().map(at_port).collect();
            let config = ResolverConfig::from_parts(None, resolvers.search.clone(), vec![server]);
            let mut options = ResolverOpts::default();
            options.cache_size = 0;
            options.ndots = resolvers.ndots;
            options.timeout = resolvers.timeout;
            // The others come before it is asked again.
            options.attempts = 0;
            // Its turn is up to nsswitch.conf.
            options.use_hosts_file = ResolveHosts::Never;
            Hickory::builder_with_config(config, Zoned::new(address)).with_options(options).build()
        };
        let udp =
            if resolvers.tcp { None } else { Some(by(&[ConnectionConfig::udp, ConnectionConfig::tcp])?) };
        let patience = resolvers.timeout.saturating_add(TCP_AFTER);
        Ok(Self { udp, tcp: by(&[ConnectionConfig::tcp])?, patience })
    }

    async fn ask(&self, name: &str, family: RecordType) -> Said {
        timeout(self.patience, self.by_both(name, family)).await.unwrap_or(Err(NetError::Timeout))
    }

    async fn by_both(&self, name: &str, family: RecordType) -> Said {
        let by_tcp = self.tcp.lookup(name, family);
        let Some(udp) = &self.udp else { return by_tcp.await };
        let by_udp = udp.lookup(name, family);
        tokio::pin!(by_udp, by_tcp);
        let is_mute =
            |said: &Said| matches!(said, Err(NetError::Timeout | NetError::Io(_) | NetError::NoConnections));
        match timeout(TCP_AFTER, &mut by_udp).await {
            Ok(said) if is_mute(&said) => return by_tcp.await,
            Ok(said) => return said,
            Err(_) => {}
        }
        tokio::select! {
            said = &mut by_udp => if is_mute(&said) { by_tcp.await } else { said },
            said = &mut by_tcp => if is_final(&said) { said } else { by_udp.await },
        }
    }
}

/// Waits for the second family. If the first has something, and the second is late, `early` is told of the first.
async fn second(
    first: &Said,
    mut second: Pin<&mut impl Future<Output = Said>>,
    early: &mut impl FnMut(Found),
) -> Said {
    if let Ok(answer) = timeout(SECOND_FAMILY, &mut second).await {
        return answer;
    }
    if let Ok(found) = found(&[first, &Err(NetError::Timeout)]) {
        early(found);
    }
    second.await
}

/// What the answers for both families come to.
fn found(answers: &[&Said]) -> Result<Found, NameFailure> {
    let mut found = Found { addresses: Vec::new(), ttl: Duration::MAX };
    let mut failure = NameFailure::NoSuchName;
    for answer in answers {
        match answer {
            Ok(lookup) => found.add(lookup),
            Err(error) if error.is_no_records_found() => {}
            Err(_) => {
                failure = NameFailure::Unanswered;
                found.ttl = found.ttl.min(HALF);
            }
        }
    }
    if found.addresses.is_empty() { Err(failure) } else { Ok(found) }
}

impl Found {
    fn add(&mut self, lookup: &Lookup) {
        let before = self.addresses.len();
        self.addresses.extend(lookup.answers().iter().filter_map(|record| record.data.ip_addr()));
        if self.addresses.len() > before {
            // With the aliases on the way (CNAME): the first that ends, ends all.
            let ttl = lookup.answers().iter().map(|record| record.ttl).min().unwrap_or(0);
            self.ttl = self.ttl.min(Duration::from_secs(ttl.into()));
        }
    }
}

/// Connects to a name server, also to one whose address means something only in a zone, which hickory does not know.
#[derive(Clone)]
struct Zoned {
    plain: TokioRuntimeProvider,
    /// The number of an interface.
    zone: Option<NonZero<u32>>,
}

impl Zoned {
    fn new(server: SocketAddr) -> Self {
        let zone = match server {
            SocketAddr::V6(server) => NonZero::new(server.scope_id()),
            SocketAddr::V4(_) => None,
        };
        Self { plain: TokioRuntimeProvider::default(), zone }
    }
}

type Pending<T> = Pin<Box<dyn Send + Future<Output = io::Result<T>>>>;

impl RuntimeProvider for Zoned {
    type Handle = <TokioRuntimeProvider as RuntimeProvider>::Handle;
    type Tcp = <TokioRuntimeProvider as RuntimeProvider>::Tcp;
    type Timer = <TokioRuntimeProvider as RuntimeProvider>::Timer;
    type Udp = UdpSocket;

    fn create_handle(&self) -> Self::Handle {
        self.plain.create_handle()
    }

    fn connect_tcp(
        &self,
        mut server: SocketAddr,
        local: Option<SocketAddr>,
        patience: Option<Duration>,
    ) -> Pending<Self::Tcp> {
        if let (SocketAddr::V6(server), Some(zone)) = (&mut server, self.zone) {
            server.set_scope_id(zone.get());
        }
        self.plain.connect_tcp(server, local, patience)
    }

    fn bind_udp(&self, local: SocketAddr, server: SocketAddr) -> Pending<Self::Udp> {
        if self.zone.is_none() {
            return self.plain.bind_udp(local, server);
        }
        let zone = self.zone;
        Box::pin(async move {
            // hickory sends to the address alone; a socket of the interface needs no more.
            let socket = Socket::new(Domain::for_address(local), Type::DGRAM.nonblocking(), None)?;
            socket.bind_device_by_index_v6(zone)?;
            socket.bind(&local.into())?;
            UdpSocket::from_std(socket.into())
        })
    }
}

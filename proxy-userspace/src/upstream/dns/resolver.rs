//! Looks names up in the hosts file and, by way of hickory, asks DNS servers. Nothing is cached here: [`super::Names`]
//! remembers, with its own idea of when an answer is too old.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZero,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use hickory_resolver::{
    Resolver as Hickory,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts, ServerOrderingStrategy},
    lookup::Lookup,
    net::{
        NetError,
        runtime::{RuntimeProvider, TokioRuntimeProvider},
    },
    proto::rr::RecordType,
};
use socket2::{Domain, Socket, Type};
use tokio::{
    net::UdpSocket,
    time::{sleep, timeout},
};
use tracing::warn;

use super::{
    answer::NameFailure,
    system::{Files, Hosts, Resolvers, Source, Versions},
};
use crate::sys::sandbox;

/// How long UDP is silent before the question is asked by TCP as well: firewalls drop the one or the other.
const TCP_AFTER: Duration = Duration::from_secs(2);
/// For a lookup in all, whatever the system's configuration allows.
const LOOKUP_MAX: Duration = Duration::from_secs(20);
/// How long the answer for one family is held back when the other's is not there.
const SECOND_FAMILY: Duration = Duration::from_millis(500);
/// How long an answer is worth something of which one family is missing because nobody answered in time: it must not be
/// hidden for as long as the other is good for.
const HALF: Duration = Duration::from_secs(30);
/// How long what the hosts file says is worth something; it is read anew when it changes.
const HOSTS: Duration = Duration::from_secs(60);
/// Where the configuration names the servers: for one attempt, and how many there are.
const ATTEMPT: Duration = Duration::from_secs(3);
const ATTEMPTS: usize = 2;

/// What a lookup found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Of both families, IPv6 first.
    pub(super) addresses: Vec<IpAddr>,
    /// The shortest of all records.
    pub(super) ttl: Duration,
}

/// Where names are looked up.
pub(super) struct Resolver<'a> {
    /// None: those of the system.
    servers: &'a [SocketAddr],
    files: Files<'a>,
    read: Versions,
    order: Vec<Source>,
    hosts: Arc<Hosts>,
    /// `None` when there is no way to ask anyone.
    dns: Option<Dns>,
}

/// Name servers, by both protocols.
#[derive(Clone)]
struct Dns {
    /// `None` when only TCP is wanted.
    udp: Option<Hickory<Zoned>>,
    tcp: Hickory<Zoned>,
    /// For a lookup in all.
    patience: Duration,
}

impl<'a> Resolver<'a> {
    /// Asks `servers`, or where there are none those that the system names.
    pub(super) fn new(servers: &'a [SocketAddr], files: Files<'a>) -> Self {
        let read = files.versions();
        let (order, hosts, dns) = load(servers, files);
        Self { servers, files, read, order, hosts, dns }
    }

    /// Reads the system's files again if one was written since, and returns whether that was so: a machine may start setu
    /// before its network, and may move to another.
    pub(super) fn refresh(&mut self) -> bool {
        let read = self.files.versions();
        let is_new = read != self.read;
        if is_new {
            self.read = read;
            (self.order, self.hosts, self.dns) = load(self.servers, self.files);
        }
        is_new
    }

    /// Asks for both families. When only one is there in good time, `early` is told of it.
    pub(super) fn lookup<E: FnMut(Found)>(
        &self,
        name: &str,
        mut early: E,
    ) -> impl Future<Output = Result<Found, NameFailure>> + use<E> {
        let (order, hosts, dns) = (self.order.clone(), self.hosts.clone(), self.dns.clone());
        // A name with a dot is whole: a search list would hand it to whoever owns the list's domains.
        let dot = if name.contains('.') && !name.ends_with('.') { "." } else { "" };
        let name = format!("{name}{dot}");
        async move {
            let mut failure = NameFailure::NoSuchName;
            for source in order {
                match source {
                    Source::Files => {
                        if let Some(addresses) = hosts.addresses(&name) {
                            return Ok(Found { addresses: addresses.into(), ttl: HOSTS });
                        }
                    }
                    Source::Dns => {
                        let found = match &dns {
                            Some(dns) => dns.both_families(&name, &mut early).await,
                            None => Err(NameFailure::Unanswered),
                        };
                        match found {
                            Ok(found) => return Ok(found),
                            Err(error) => failure = error,
                        }
                    }
                }
            }
            Err(failure)
        }
    }
}

fn load(servers: &[SocketAddr], files: Files<'_>) -> (Vec<Source>, Arc<Hosts>, Option<Dns>) {
    let resolvers = if servers.is_empty() {
        let file = files.resolv_conf.display();
        let advice =
            "only addresses and names of /etc/hosts can be dialed; name one there, or in [dns] servers";
        match files.resolvers() {
            Ok(resolvers) if resolvers.servers.is_empty() => {
                warn!("{file} names no resolver: {advice}");
                None
            }
            Ok(resolvers) => Some(resolvers),
            Err(error) if sandbox::is_to_blame(files.resolv_conf, &error) => {
                warn!(%error, "{file} cannot be read: {}; until then {advice}", sandbox::REMEDY);
                None
            }
            Err(error) => {
                warn!(%error, "{file} cannot be read: {advice}");
                None
            }
        }
    } else {
        Some(Resolvers::named(servers))
    };
    let dns = resolvers.and_then(|resolvers| {
        Dns::new(&resolvers).inspect_err(|error| warn!(%error, "names cannot be resolved")).ok()
    });
    (files.order(), Arc::new(files.hosts()), dns)
}

impl Resolvers {
    /// Those that the configuration names.
    fn named(servers: &[SocketAddr]) -> Self {
        Self {
            servers: servers.into(),
            search: Vec::new(),
            ndots: 1,
            timeout: ATTEMPT,
            attempts: ATTEMPTS,
            rotate: false,
            tcp: false,
        }
    }
}

impl Dns {
    fn new(resolvers: &Resolvers) -> Result<Self, NetError> {
        let by = |connections: &[fn() -> ConnectionConfig]| {
            let server = |address: &SocketAddr| {
                let mut server = NameServerConfig::udp_and_tcp(address.ip());
                let at_port = |connection: &fn() -> ConnectionConfig| {
                    let mut connection = connection();
                    connection.port = address.port();
                    connection
                };
                server.connections = connections.iter().map(at_port).collect();
                server
            };
            let servers = resolvers.servers.iter().map(server).collect();
            let config = ResolverConfig::from_parts(None, resolvers.search.clone(), servers);
            let mut options = ResolverOpts::default();
            options.cache_size = 0;
            options.ndots = resolvers.ndots;
            options.timeout = resolvers.timeout;
            // Those after the first.
            options.attempts = resolvers.attempts.saturating_sub(1);
            if resolvers.rotate {
                options.server_ordering_strategy = ServerOrderingStrategy::RoundRobin;
            }
            let provider = Zoned::new(&resolvers.servers);
            Hickory::builder_with_config(config, provider).with_options(options).build()
        };
        let udp =
            if resolvers.tcp { None } else { Some(by(&[ConnectionConfig::udp, ConnectionConfig::tcp])?) };
        let attempts = u32::try_from(resolvers.attempts).unwrap_or(u32::MAX);
        let patience = resolvers.timeout.saturating_mul(attempts) + TCP_AFTER;
        Ok(Self { udp, tcp: by(&[ConnectionConfig::tcp])?, patience: patience.min(LOOKUP_MAX) })
    }

    async fn both_families(&self, name: &str, early: &mut impl FnMut(Found)) -> Result<Found, NameFailure> {
        let v6 = self.ask(name, RecordType::AAAA);
        let v4 = self.ask(name, RecordType::A);
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
    async fn ask(&self, name: &str, family: RecordType) -> Result<Lookup, NetError> {
        let asked = async {
            let by_tcp = self.tcp.lookup(name, family);
            let Some(udp) = &self.udp else { return by_tcp.await };
            let by_udp = udp.lookup(name, family);
            let by_tcp = async {
                sleep(TCP_AFTER).await;
                by_tcp.await
            };
            tokio::pin!(by_udp, by_tcp);
            tokio::select! {
                answer = &mut by_udp => match answer {
                    Err(NetError::Timeout | NetError::Io(_) | NetError::NoConnections) => by_tcp.await,
                    answer => answer,
                },
                answer = &mut by_tcp => match answer {
                    Err(error) if !error.is_no_records_found() => by_udp.await,
                    answer => answer,
                },
            }
        };
        timeout(self.patience, asked).await.unwrap_or(Err(NetError::Timeout))
    }
}

/// Waits for the second family. If the first has something, and the second is late, `early` is told of the first.
async fn second(
    first: &Result<Lookup, NetError>,
    mut second: Pin<&mut impl Future<Output = Result<Lookup, NetError>>>,
    early: &mut impl FnMut(Found),
) -> Result<Lookup, NetError> {
    if let Ok(answer) = timeout(SECOND_FAMILY, &mut second).await {
        return answer;
    }
    if let Ok(found) = found(&[first, &Err(NetError::Timeout)]) {
        early(found);
    }
    second.await
}

/// What the answers for both families come to.
fn found(answers: &[&Result<Lookup, NetError>]) -> Result<Found, NameFailure> {
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

/// Connects to name servers, also to those whose addresses mean something only in a zone, which hickory does not know.
#[derive(Clone)]
struct Zoned {
    plain: TokioRuntimeProvider,
    /// Interfaces by address.
    zones: Arc<HashMap<Ipv6Addr, NonZero<u32>>>,
}

impl Zoned {
    fn new(servers: &[SocketAddr]) -> Self {
        let zone = |server: &SocketAddr| match server {
            SocketAddr::V6(server) => Some((*server.ip(), NonZero::new(server.scope_id())?)),
            SocketAddr::V4(_) => None,
        };
        let zones = servers.iter().filter_map(zone).collect();
        Self { plain: TokioRuntimeProvider::default(), zones: Arc::new(zones) }
    }

    fn zone(&self, server: SocketAddr) -> Option<NonZero<u32>> {
        match server {
            SocketAddr::V6(server) => self.zones.get(server.ip()).copied(),
            SocketAddr::V4(_) => None,
        }
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
        let zone = self.zone(server);
        if let (SocketAddr::V6(server), Some(zone)) = (&mut server, zone) {
            server.set_scope_id(zone.get());
        }
        self.plain.connect_tcp(server, local, patience)
    }

    fn bind_udp(&self, local: SocketAddr, server: SocketAddr) -> Pending<Self::Udp> {
        let Some(zone) = self.zone(server) else { return self.plain.bind_udp(local, server) };
        Box::pin(async move {
            // hickory sends to the address alone; a socket of the interface needs no more.
            let socket = Socket::new(Domain::for_address(local), Type::DGRAM.nonblocking(), None)?;
            socket.bind_device_by_index_v6(Some(zone))?;
            socket.bind(&local.into())?;
            UdpSocket::from_std(socket.into())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use setu_tests::dns::{Answer as Says, DnsServer};
    use tempfile::TempDir;

    use super::*;

    /// The system's files, as a test wants them.
    struct Machine {
        _folder: TempDir,
        paths: [PathBuf; 3],
    }

    impl Machine {
        fn new(hosts: &str, resolv_conf: &str, nsswitch: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let paths = ["hosts", "resolv.conf", "nsswitch.conf"].map(|name| folder.path().join(name));
            for (path, text) in paths.iter().zip([hosts, resolv_conf, nsswitch]) {
                fs::write(path, text).unwrap();
            }
            Self { _folder: folder, paths }
        }

        fn files(&self) -> Files<'_> {
            let [hosts, resolv_conf, nsswitch] = &self.paths;
            Files { hosts, resolv_conf, nsswitch }
        }
    }

    async fn look(resolver: &Resolver<'_>, name: &str) -> Result<Vec<IpAddr>, NameFailure> {
        resolver.lookup(name, |_| panic!("not early")).await.map(|found| found.addresses)
    }

    fn ips(addresses: &[&str]) -> Result<Vec<IpAddr>, NameFailure> {
        Ok(addresses.iter().map(|ip| ip.parse().unwrap()).collect())
    }

    #[tokio::test]
    async fn without_a_resolver_names_fail_until_one_is_named() {
        let machine = Machine::new("127.0.0.1 localhost\n", "", "");
        let mut resolver = Resolver::new(&[], machine.files());
        // Fails at once: there is nobody to ask.
        assert_eq!(look(&resolver, "a.test").await, Err(NameFailure::Unanswered));
        assert_eq!(look(&resolver, "localhost").await, ips(&["127.0.0.1"]));
        assert!(!resolver.refresh());
        fs::write(&machine.paths[1], "nameserver 127.0.0.1\n").unwrap();
        assert!(resolver.refresh() && resolver.dns.is_some());
        assert!(!resolver.refresh());
    }

    #[tokio::test]
    async fn the_hosts_file_decides_for_both_families_and_is_read_anew() {
        let server = DnsServer::new();
        server.set("a.test", Says::addresses(&["157.240.1.1", "2a03:2880::1"], 60));
        let machine = Machine::new("192.0.2.1 A.test\n", "", "");
        let servers = [server.address()];
        let mut resolver = Resolver::new(&servers, machine.files());
        assert_eq!(look(&resolver, "a.test").await, ips(&["192.0.2.1"]));
        assert_eq!(server.queries(), 0);
        fs::write(&machine.paths[0], "192.0.2.22 a.test\n").unwrap();
        assert!(resolver.refresh());
        assert_eq!(look(&resolver, "a.test").await, ips(&["192.0.2.22"]));
        fs::write(&machine.paths[2], "hosts: dns files\n").unwrap();
        assert!(resolver.refresh());
        assert_eq!(look(&resolver, "a.test").await, ips(&["2a03:2880::1", "157.240.1.1"]));
        server.set("a.test", Says::NoSuchName);
        assert_eq!(look(&resolver, "a.test").await, ips(&["192.0.2.22"]));
        fs::remove_file(&machine.paths[0]).unwrap();
        assert!(resolver.refresh());
        assert_eq!(look(&resolver, "a.test").await, Err(NameFailure::NoSuchName));
    }

    #[tokio::test]
    async fn a_family_that_is_late_is_taken_in_when_it_comes() {
        let server = DnsServer::new();
        let (six, four) = ("2a03:2880::1".parse().unwrap(), "157.240.1.1".parse().unwrap());
        server.set("late.test", Says::LateFour(vec![six, four], 3_600, SECOND_FAMILY * 2));
        let (servers, machine) = ([server.address()], Machine::new("", "", ""));
        let resolver = Resolver::new(&servers, machine.files());
        let mut early = None;
        let found = resolver.lookup("late.test", |found| early = Some(found)).await.unwrap();
        assert_eq!(early, Some(Found { addresses: vec![six], ttl: HALF }));
        assert_eq!(found, Found { addresses: vec![six, four], ttl: Duration::from_secs(3_600) });
    }

    #[tokio::test]
    async fn servers_that_are_silent_by_udp_are_asked_by_tcp() {
        let server = DnsServer::tcp_alone();
        server.set("a.test", Says::addresses(&["157.240.1.1"], 60));
        let (servers, machine) = ([server.address()], Machine::new("", "", ""));
        assert_eq!(look(&Resolver::new(&servers, machine.files()), "a.test").await, ips(&["157.240.1.1"]));
    }
}

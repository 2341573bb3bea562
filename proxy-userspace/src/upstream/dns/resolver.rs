//! Asks DNS servers, by way of hickory. Nothing is cached here: [`super::Names`] remembers, with its own idea of when
//! an answer is too old.

use std::{
    fs,
    future::Future,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::{Duration, SystemTime},
};

use hickory_resolver::{
    Resolver as Hickory, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::RecordType,
    system_conf::parse_resolv_conf,
};
use tokio::time::timeout;
use tracing::warn;

use super::answer::NameFailure;

/// Where the system names its resolvers.
pub(super) const RESOLV_CONF: &str = "/etc/resolv.conf";
/// For one server's answer; two attempts are made.
const ATTEMPT: Duration = Duration::from_secs(2);
/// For a lookup in all.
const LOOKUP: Duration = Duration::from_secs(5);
/// How much longer the answer for one family is waited for when the other's is there.
const SECOND_FAMILY: Duration = Duration::from_millis(500);

/// How long an answer is worth something of which one family is missing because nobody answered in time: it must not be
/// hidden for as long as the other is good for. Where resolvers never answer for one, a client waits so often.
const HALF: Duration = Duration::from_secs(30);

/// What a lookup found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Of both families, IPv6 first.
    pub(super) addresses: Vec<IpAddr>,
    /// The shortest of all records.
    pub(super) ttl: Duration,
}

/// The servers to ask.
pub(super) struct Resolver<'a> {
    /// None: those of the system.
    servers: &'a [SocketAddr],
    /// The system's file, and when it was last written.
    file: &'a Path,
    written: Option<SystemTime>,
    /// `None` when there is no way to ask anyone.
    inner: Option<TokioResolver>,
}

impl<'a> Resolver<'a> {
    /// Asks `servers`, or where there are none those that `file` names.
    pub(super) fn new(servers: &'a [SocketAddr], file: &'a Path) -> Self {
        let mut resolver = Self { servers, file, written: None, inner: None };
        resolver.load();
        resolver
    }

    /// Reads the system's configuration again if it was written since: a machine may start setu before its network, and
    /// may move to another.
    pub(super) fn reload(&mut self) {
        if self.servers.is_empty() && written(self.file) != self.written {
            self.load();
        }
    }

    fn load(&mut self) {
        self.written = written(self.file);
        self.inner = build(self.servers, self.file)
            .inspect_err(|error| warn!(%error, "names cannot be resolved"))
            .ok();
    }

    /// Asks for both families.
    pub(super) fn lookup(&self, name: &str) -> impl Future<Output = Result<Found, NameFailure>> + use<> {
        let inner = self.inner.clone();
        // A name with a dot is whole: a search list would hand it to whoever owns the list's domains.
        let dot = if name.contains('.') && !name.ends_with('.') { "." } else { "" };
        let name = format!("{name}{dot}");
        async move {
            let resolver = inner.ok_or(NameFailure::Unanswered)?;
            let found = timeout(LOOKUP, both_families(&resolver, &name)).await;
            found.unwrap_or(Err(NameFailure::Unanswered))
        }
    }
}

async fn both_families(resolver: &TokioResolver, name: &str) -> Result<Found, NameFailure> {
    let v6 = resolver.lookup(name, RecordType::AAAA);
    let v4 = resolver.lookup(name, RecordType::A);
    tokio::pin!(v6, v4);
    // The family that comes first does not wait long for the other, unless it has nothing.
    let (v6, v4) = tokio::select! {
        v6 = &mut v6 => {
            let wait = if v6.is_ok() { SECOND_FAMILY } else { LOOKUP };
            let v4 = timeout(wait, v4).await.unwrap_or(Err(NetError::Timeout));
            (v6, v4)
        }
        v4 = &mut v4 => {
            let wait = if v4.is_ok() { SECOND_FAMILY } else { LOOKUP };
            let v6 = timeout(wait, v6).await.unwrap_or(Err(NetError::Timeout));
            (v6, v4)
        }
    };
    let mut found = Found { addresses: Vec::new(), ttl: Duration::MAX };
    let mut failure = NameFailure::NoSuchName;
    for result in [v6, v4] {
        match result {
            Ok(lookup) => found.add(&lookup),
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

fn written(file: &Path) -> Option<SystemTime> {
    fs::metadata(file).and_then(|file| file.modified()).ok()
}

fn build(servers: &[SocketAddr], file: &Path) -> Result<TokioResolver, NetError> {
    let mut config = ResolverConfig::from_name_servers(servers.iter().copied().map(server).collect());
    let mut options = ResolverOpts::default();
    if servers.is_empty() {
        match fs::read(file).map_err(NetError::from).and_then(parse_resolv_conf) {
            Ok(system) => (config, options) = system,
            Err(error) => warn!(
                %error,
                "{} names no resolver: only addresses and names of /etc/hosts can be dialed; name one there, or in \
                 [dns] servers",
                file.display()
            ),
        }
    }
    options.cache_size = 0;
    options.timeout = ATTEMPT;
    options.attempts = 1;
    Hickory::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options).build()
}

fn server(address: SocketAddr) -> NameServerConfig {
    let at_port = |mut connection: ConnectionConfig| {
        connection.port = address.port();
        connection
    };
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    server.connections = vec![at_port(ConnectionConfig::udp()), at_port(ConnectionConfig::tcp())];
    server
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn without_a_resolver_names_fail_until_one_is_named() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_owned();
        let mut resolver = Resolver::new(&[], &path);
        let count = |resolver: &Resolver| resolver.inner.as_ref().map(|inner| inner.options().attempts);
        assert_eq!(count(&resolver), Some(1));
        // Fails at once: there is nobody to ask.
        assert_eq!(resolver.lookup("a.test").await, Err(NameFailure::Unanswered));
        assert!(resolver.lookup("localhost").await.unwrap().addresses.iter().all(IpAddr::is_loopback));
        resolver.reload();
        assert_eq!(resolver.written, written(&path));
        writeln!(file, "nameserver 127.0.0.1").unwrap();
        file.as_file().set_modified(SystemTime::now() + Duration::from_secs(1)).unwrap();
        assert_ne!(resolver.written, written(&path));
        resolver.reload();
        assert_eq!(resolver.written, written(&path));
    }
}

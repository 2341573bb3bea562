//! Looks names up in the hosts file, and asks DNS servers. Nothing is cached here: [`super::Names`] remembers, with its own
//! idea of when an answer is too old.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use tracing::warn;

use super::{
    answer::{Found, NameFailure},
    servers::Dns,
    system::{Files, Hosts, Resolvers, Source, Step, Versions, interface},
};

/// How long what the hosts file says is worth something; it is read anew when it changes.
const HOSTS: Duration = Duration::from_secs(60);
/// Where the configuration names the servers: for one attempt, and how many there are.
const ATTEMPT: Duration = Duration::from_secs(3);
const ATTEMPTS: usize = 2;

/// Where names are looked up.
pub(super) struct Resolver<'a> {
    /// None: those of the system.
    servers: &'a [SocketAddr],
    files: Files<'a>,
    versions: Versions,
    read: Read,
}

/// What the system's files say.
struct Read {
    order: Vec<Step>,
    hosts: Arc<Hosts>,
    /// `None` when they cannot be asked at all.
    dns: Option<Dns>,
    /// Interfaces that name servers are behind, and the numbers that they had.
    zones: Vec<(String, Option<u32>)>,
}

impl<'a> Resolver<'a> {
    /// Asks `servers`, or where there are none those that the system names.
    pub(super) fn new(servers: &'a [SocketAddr], files: Files<'a>) -> Self {
        Self { servers, files, versions: files.versions(), read: Read::new(servers, files) }
    }

    /// Reads the system's files again if one was written since, or an interface came that they name, and returns whether
    /// that was so: a machine may start setu before its network, and may move to another.
    pub(super) fn refresh(&mut self) -> bool {
        let versions = self.files.versions();
        let moved = self.read.zones.iter().any(|(name, number)| interface(name) != *number);
        let is_new = versions != self.versions || moved;
        if is_new {
            self.versions = versions;
            self.read = Read::new(self.servers, self.files);
        }
        is_new
    }

    /// Asks for both families. When only one is there in good time, `early` is told of it.
    pub(super) fn lookup<E: FnMut(Found)>(
        &self,
        name: &str,
        mut early: E,
    ) -> impl Future<Output = Result<Found, NameFailure>> + use<E> {
        let Read { order, hosts, dns, .. } = &self.read;
        let (order, hosts, dns) = (order.clone(), hosts.clone(), dns.clone());
        // A name with a dot is whole: a search list would hand it to whoever owns the list's domains.
        let dot = if name.contains('.') && !name.ends_with('.') { "." } else { "" };
        let name = format!("{name}{dot}");
        async move {
            let mut failure = NameFailure::NoSuchName;
            for step in order {
                let found = match (step.source, &dns) {
                    (Source::Files, _) => match hosts.addresses(&name) {
                        Some(addresses) => Ok(Found { addresses: addresses.into(), ttl: HOSTS }),
                        None if step.denies => return Err(failure),
                        None => continue,
                    },
                    (Source::Dns, Some(dns)) => dns.both_families(&name, &mut early).await,
                    (Source::Dns, None) => Err(NameFailure::Unanswered),
                };
                match found {
                    Err(error) => failure = error,
                    found => return found,
                }
                if if failure == NameFailure::NoSuchName { step.denies } else { step.blocks } {
                    break;
                }
            }
            Err(failure)
        }
    }
}

impl Read {
    fn new(servers: &[SocketAddr], files: Files<'_>) -> Self {
        let resolvers = if servers.is_empty() { files.resolvers() } else { Resolvers::named(servers) };
        let dns = Dns::new(&resolvers).inspect_err(|error| warn!(%error, "names cannot be resolved")).ok();
        Self { order: files.order(), hosts: Arc::new(files.hosts()), dns, zones: resolvers.zones }
    }
}

impl Resolvers {
    /// Those that the configuration names.
    fn named(servers: &[SocketAddr]) -> Self {
        Self {
            servers: servers.into(),
            zones: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout: ATTEMPT,
            attempts: ATTEMPTS,
            rotate: false,
            tcp: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, net::IpAddr, path::PathBuf};

    use setu_tests::dns::{Answer as Says, DnsServer};
    use tempfile::TempDir;

    use super::{
        super::servers::{HALF, SECOND_FAMILY},
        *,
    };

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
    async fn without_a_resolver_this_machine_is_asked_until_one_is_named() {
        let local: SocketAddr = "127.0.0.1:53".parse().unwrap();
        let machine = Machine::new("127.0.0.1 localhost\n", "", "");
        let mut resolver = Resolver::new(&[], machine.files());
        assert_eq!(look(&resolver, "localhost").await, ips(&["127.0.0.1"]));
        assert!(!resolver.refresh());
        for text in ["", "search a.test\n", "nameserver nobody\n"] {
            fs::write(&machine.paths[1], text).unwrap();
            assert_eq!(machine.files().resolvers().servers, [local], "{text}");
        }
        fs::write(&machine.paths[1], "nameserver fe80::1%nowhere\n").unwrap();
        assert!(resolver.refresh());
        assert_eq!(look(&resolver, "a.test").await, Err(NameFailure::Unanswered));
        assert_eq!(machine.files().resolvers().servers, []);
        fs::write(&machine.paths[1], "\u{feff}nameserver 192.0.2.1\n").unwrap();
        assert!(resolver.refresh());
        assert!(!resolver.refresh());
        assert_eq!(machine.files().resolvers().servers, ["192.0.2.1:53".parse().unwrap()]);
        fs::remove_file(&machine.paths[1]).unwrap();
        assert_eq!(machine.files().resolvers().servers, [local]);
    }

    #[tokio::test]
    async fn what_nsswitch_calls_the_last_word_is_the_last() {
        let server = DnsServer::new();
        server.set("dns.test", Says::addresses(&["157.240.1.1"], 60));
        server.set("both.test", Says::addresses(&["157.240.1.1"], 60));
        server.set("fails.test", Says::Fails);
        let hosts = "192.0.2.1 files.test both.test fails.test\n";
        let (in_hosts, in_dns) = (ips(&["192.0.2.1"]), ips(&["157.240.1.1"]));
        let (absent, unanswered) = (Err(NameFailure::NoSuchName), Err(NameFailure::Unanswered));
        for (order, name, wanted) in [
            ("files [NOTFOUND=return] dns", "both.test", &in_hosts),
            ("files [NOTFOUND=return] dns", "dns.test", &absent),
            ("dns [NOTFOUND=return] files", "both.test", &in_dns),
            ("dns [NOTFOUND=return] files", "files.test", &absent),
            ("dns [NOTFOUND=return] files", "fails.test", &in_hosts),
            ("dns [!UNAVAIL=return] files", "fails.test", &unanswered),
            ("dns files", "both.test", &in_dns),
            ("dns files", "files.test", &in_hosts),
            ("dns", "files.test", &absent),
        ] {
            let machine = Machine::new(hosts, "", &format!("hosts: {order}\n"));
            let servers = [server.address()];
            assert_eq!(
                &look(&Resolver::new(&servers, machine.files()), name).await,
                wanted,
                "{order}: {name}"
            );
        }
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
    async fn servers_take_turns_only_where_the_file_says_so() {
        let both = [DnsServer::new(), DnsServer::new()];
        for server in &both {
            server.set("a.test", Says::addresses(&["157.240.1.1"], 60));
        }
        for rotate in [false, true] {
            let before = both.each_ref().map(DnsServer::queries);
            let servers = both.each_ref().map(DnsServer::address).to_vec();
            let dns = Dns::new(&Resolvers { rotate, ..Resolvers::named(&servers) }).unwrap();
            for _ in 0..4 {
                dns.both_families("a.test.", &mut |_| panic!("not early")).await.unwrap();
            }
            let now = both.each_ref().map(DnsServer::queries);
            let asked = [now[0] - before[0], now[1] - before[1]];
            assert_eq!(asked, if rotate { [4, 4] } else { [8, 0] });
        }
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

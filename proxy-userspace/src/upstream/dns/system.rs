//! What this machine says of names and of whom to ask: `/etc/hosts`, `/etc/resolv.conf`, `/etc/nsswitch.conf`. People
//! expect of them what glibc does (hosts(5), resolv.conf(5), nsswitch.conf(5)); what cannot be used is skipped, and the
//! rest is used.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::Duration,
};

use hickory_resolver::proto::rr::Name;
use tracing::warn;

/// The port of DNS.
const PORT: u16 = 53;
/// Bounds of `options timeout:` and `attempts:`, as glibc has them.
const TIMEOUT_MAX: u32 = 30;
const ATTEMPTS_MAX: u32 = 5;

/// The files.
#[derive(Debug, Clone, Copy)]
pub(super) struct Files<'a> {
    pub(super) hosts: &'a Path,
    pub(super) resolv_conf: &'a Path,
    pub(super) nsswitch: &'a Path,
}

/// Which versions of the files were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Versions([Option<Version>; 3]);

/// Device, inode, size, and when it was written, to the nanosecond.
type Version = (u64, u64, u64, i64, i64);

/// Where names are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// `/etc/hosts`.
    Files,
    /// The name servers.
    Dns,
}

/// The addresses that `/etc/hosts` has, by name in lower case.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hosts(HashMap<String, Vec<IpAddr>>);

/// What `/etc/resolv.conf` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resolvers {
    pub(super) servers: Vec<SocketAddr>,
    pub(super) search: Vec<Name>,
    pub(super) ndots: usize,
    /// For one attempt.
    pub(super) timeout: Duration,
    pub(super) attempts: usize,
    /// Each server in turn, not the first as long as it answers.
    pub(super) rotate: bool,
    /// By TCP alone (`use-vc`).
    pub(super) tcp: bool,
}

impl Files<'static> {
    /// Those of the system.
    pub(super) fn system() -> Self {
        Self {
            hosts: Path::new("/etc/hosts"),
            resolv_conf: Path::new("/etc/resolv.conf"),
            nsswitch: Path::new("/etc/nsswitch.conf"),
        }
    }
}

impl Files<'_> {
    pub(super) fn versions(&self) -> Versions {
        let version = |path: &Path| {
            let file = fs::metadata(path).ok()?;
            Some((file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
        };
        Versions([self.hosts, self.resolv_conf, self.nsswitch].map(version))
    }

    /// Where to look, in this order. Without a file, or a line for it: as glibc does.
    pub(super) fn order(&self) -> Vec<Source> {
        read(self.nsswitch).map_or_else(|_| order(""), |text| order(&text))
    }

    pub(super) fn hosts(&self) -> Hosts {
        read(self.hosts).map_or_else(|_| Hosts::default(), |text| Hosts::parse(&text))
    }

    /// Whom to ask.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn resolvers(&self) -> io::Result<Resolvers> {
        let (resolvers, skipped) = Resolvers::parse(&read(self.resolv_conf)?, interface);
        if !skipped.is_empty() {
            let file = self.resolv_conf.display();
            warn!(skipped = skipped.join(", "), "{file}: what cannot be used is left out");
        }
        Ok(resolvers)
    }
}

/// A comment may be in any encoding.
fn read(path: &Path) -> io::Result<String> {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn order(nsswitch: &str) -> Vec<Source> {
    let mut lines = nsswitch.lines().filter_map(|line| line.split('#').next()?.trim().strip_prefix("hosts:"));
    let mut order: Vec<Source> = Vec::new();
    for word in lines.next_back().unwrap_or("files dns").split_whitespace() {
        let sources: &[Source] = match word {
            "files" => &[Source::Files],
            "dns" => &[Source::Dns],
            // systemd-resolved reads the hosts file itself, and is asked as the name server that it is.
            "resolve" => &[Source::Files, Source::Dns],
            _ => &[],
        };
        for source in sources {
            if !order.contains(source) {
                order.push(*source);
            }
        }
    }
    // Whoever took both out has something else in mind, which setu does not know.
    if order.is_empty() { vec![Source::Files, Source::Dns] } else { order }
}

impl Hosts {
    fn parse(text: &str) -> Self {
        let mut hosts: HashMap<_, Vec<IpAddr>> = HashMap::new();
        for line in text.lines().filter_map(|line| line.split('#').next()) {
            let mut words = line.split_whitespace();
            let Some(ip) = words.next().and_then(|word| word.parse().ok()) else { continue };
            for name in words {
                let known = hosts.entry(name.to_ascii_lowercase()).or_default();
                if !known.contains(&ip) {
                    known.push(ip);
                }
            }
        }
        Self(hosts)
    }

    /// The addresses of a name, of both families: what is here is all that there is.
    pub(super) fn addresses(&self, name: &str) -> Option<&[IpAddr]> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        self.0.get(&name).map(Vec::as_slice)
    }
}

impl Resolvers {
    /// Also returns what is skipped. `zone`: the number of an interface.
    fn parse(text: &str, zone: impl Fn(&str) -> Option<u32>) -> (Self, Vec<String>) {
        let mut skipped = Vec::new();
        // Whose own reading of `nameserver` knows no zone like `br-lan`. Of what it does not know most is not for setu.
        let (parsed, _) = resolv_conf::Config::parse_with_errors(text.as_bytes());
        let mut servers = Vec::new();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some("nameserver") {
                continue;
            }
            match words.next().and_then(|word| server(word, &zone)) {
                Some(server) => servers.push(server),
                None => skipped.push(line.trim().to_owned()),
            }
        }
        let mut search = Vec::new();
        for domain in parsed.get_last_search_or_domain() {
            match Name::from_str_relaxed(domain) {
                Ok(domain) => search.push(domain),
                Err(_) => skipped.push(format!("search {domain}")),
            }
        }
        let resolvers = Self {
            servers,
            search,
            ndots: parsed.ndots as usize,
            timeout: Duration::from_secs(parsed.timeout.clamp(1, TIMEOUT_MAX).into()),
            attempts: parsed.attempts.clamp(1, ATTEMPTS_MAX) as usize,
            rotate: parsed.rotate,
            tcp: parsed.use_vc,
        };
        (resolvers, skipped)
    }
}

/// An address, in IPv6 perhaps with a zone. The unspecified one is this machine.
fn server(word: &str, zone: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let (ip, zone) = match word.split_once('%') {
        Some((ip, name)) => (ip, name.parse().ok().or_else(|| zone(name))?),
        None => (word, 0),
    };
    match ip.parse().ok()? {
        IpAddr::V4(_) if zone != 0 => None,
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Some((Ipv4Addr::LOCALHOST, PORT).into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Some((Ipv6Addr::LOCALHOST, PORT).into()),
        IpAddr::V4(ip) => Some((ip, PORT).into()),
        IpAddr::V6(ip) => Some(SocketAddrV6::new(ip, PORT, 0, zone).into()),
    }
}

/// The number of an interface that has an address.
fn interface(name: &str) -> Option<u32> {
    let interfaces = if_addrs::get_if_addrs().ok()?;
    interfaces.into_iter().find(|interface| interface.name == name)?.index
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (Resolvers, Vec<String>) {
        Resolvers::parse(text, |name| (name == "br-lan").then_some(7))
    }

    #[test]
    fn a_line_that_cannot_be_used_costs_no_other() {
        for odd in [
            r"search a.example\032b.example",
            "search \"example.org\"",
            "domain (none)",
            "search a..b",
            "search -x",
            "search",
            "domain",
            "nameserver",
            "nameserver 300.1.1.1",
            "nameserver 192.0.2.9%eth0",
            "nameserver fe80::1%nowhere",
            "options timeout:never attempts: ndots",
            "nonsense of any kind",
            "\u{fffd}\u{fffd}",
            ";comment",
            "sortlist x",
        ] {
            let (resolvers, _) = parse(&format!("nameserver 192.0.2.1\n{odd}\nnameserver 192.0.2.2\n"));
            let wanted: Vec<SocketAddr> =
                ["192.0.2.1:53", "192.0.2.2:53"].map(|at| at.parse().unwrap()).into();
            assert_eq!(resolvers.servers, wanted, "{odd}");
        }
        let (resolvers, skipped) = parse("search good.example a..b\nnameserver x\nnameserver 192.0.2.1");
        assert_eq!(resolvers.search, [Name::from_str_relaxed("good.example").unwrap()]);
        assert_eq!(skipped, ["nameserver x", "search a..b"]);
    }

    #[test]
    fn zones_and_the_unspecified_address_are_understood() {
        let (resolvers, skipped) =
            parse("nameserver fe80::1%br-lan\nnameserver fe80::2%3\nnameserver 0.0.0.0\nnameserver ::\n");
        assert!(skipped.is_empty(), "{skipped:?}");
        let zoned = |ip: &str, zone| SocketAddr::from(SocketAddrV6::new(ip.parse().unwrap(), 53, 0, zone));
        let local: Vec<SocketAddr> = ["127.0.0.1:53", "[::1]:53"].map(|at| at.parse().unwrap()).into();
        assert_eq!(resolvers.servers, [vec![zoned("fe80::1", 7), zoned("fe80::2", 3)], local].concat());
    }

    #[test]
    fn options_are_heeded_within_bounds() {
        let (plain, _) = parse("");
        assert_eq!((plain.timeout, plain.attempts, plain.ndots), (Duration::from_secs(5), 2, 1));
        assert!(!plain.tcp && !plain.rotate);
        let (set, _) = parse("options timeout:1 attempts:4\noptions use-vc rotate ndots:5\n");
        assert_eq!((set.timeout, set.attempts, set.ndots), (Duration::from_secs(1), 4, 5));
        assert!(set.tcp && set.rotate);
        let (wild, _) = parse("options timeout:4000000000 attempts:0");
        assert_eq!((wild.timeout, wild.attempts), (Duration::from_secs(30), 1));
    }

    #[test]
    fn hosts_has_both_families_and_any_case() {
        let hosts = Hosts::parse(
            "# c\n127.0.0.1 localhost # d\n::1 LocalHost\n\nnonsense a\n192.0.2.1\ta.Test b.test\n",
        );
        assert_eq!(hosts.addresses("LOCALHOST").unwrap().len(), 2);
        assert_eq!(hosts.addresses("b.test.").unwrap(), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(hosts.addresses("a"), None);
    }

    #[test]
    fn the_order_is_that_of_nsswitch() {
        use Source::{Dns, Files};
        for (text, wanted) in [
            ("", vec![Files, Dns]),
            ("passwd: files\n", vec![Files, Dns]),
            ("hosts: files mdns4_minimal [NOTFOUND=return] dns\n", vec![Files, Dns]),
            ("hosts:\tdns files # hosts: files\n", vec![Dns, Files]),
            ("hosts: mymachines resolve [!UNAVAIL=return] files myhostname dns", vec![Files, Dns]),
            ("hosts: dns", vec![Dns]),
            ("hosts: ldap", vec![Files, Dns]),
        ] {
            assert_eq!(order(text), wanted, "{text}");
        }
    }
}

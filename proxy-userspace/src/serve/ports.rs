//! How many connections to its servers this machine has ports for.
//!
//! Each connection to one address and port takes a local port of the address that it comes from. What the kernel says of
//! them is in Documentation/networking/ip-sysctl.rst.

use std::{fs, net::IpAddr, ops::RangeInclusive};

use crate::config::{Config, Endpoint, Host, Mode, Route, Upstream, UpstreamId};

/// How long a port rests after a connection that setu ended first (`TCP_TIMEWAIT_LEN`, include/net/tcp.h), seconds.
pub(crate) const REST: u64 = 60;

/// The local ports of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ports {
    /// `net.ipv4.ip_local_port_range`, for IPv6 as well.
    pub(crate) range: RangeInclusive<u16>,
    /// How many of these `net.ipv4.ip_local_reserved_ports` takes out.
    pub(crate) reserved: u64,
    /// `net.ipv4.tcp_tw_reuse`: whether a port that rests may be used after a second; 1: yes, 2: on loopback alone.
    pub(crate) reuse: u8,
}

impl Ports {
    /// Reads them. `None` where /proc does not tell.
    pub(crate) fn read() -> Option<Self> {
        let text = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok();
        let reserved = text("ip_local_reserved_ports").unwrap_or_default();
        Self::parse(&text("ip_local_port_range")?, &reserved, &text("tcp_tw_reuse")?)
    }

    fn parse(range: &str, reserved: &str, reuse: &str) -> Option<Self> {
        let mut ends = range.split_whitespace().map(|end| end.parse::<u16>().ok());
        let range = ends.next()??..=ends.next()??;
        let mut out = 0;
        for part in reserved.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
            let common = first.max(*range.start())..=last.min(*range.end());
            out += common.len() as u64;
        }
        Some(Self { range, reserved: out, reuse: reuse.trim().parse().ok()? })
    }

    /// Connections from one address to one address and port.
    pub(crate) fn of_one(&self) -> u64 {
        (self.range.len() as u64).saturating_sub(self.reserved)
    }

    /// Connections to an upstream. A name counts as one address.
    pub(crate) fn of(&self, upstream: &Upstream) -> u64 {
        self.of_one() * pairs(upstream).count() as u64
    }

    /// Connections to all upstreams to which listeners lead. `None`: clients name the servers, or some go to the
    /// operator's own, so that these ports say nothing.
    pub(crate) fn of_all(&self, config: &Config) -> Option<u64> {
        let own = |mode| matches!(mode, Mode::Auto { fallback: Some(_), .. });
        if config.listeners.iter().any(|listener| own(listener.mode)) {
            return None;
        }
        let mut all: Vec<(IpAddrOrAny, &Endpoint)> = Vec::new();
        for upstream in used(config) {
            if upstream.route == Route::Sni {
                return None;
            }
            for pair in pairs(upstream) {
                if !all.contains(&pair) {
                    all.push(pair);
                }
            }
        }
        Some(self.of_one() * all.len() as u64)
    }
}

/// Upstreams to which listeners lead.
pub(crate) fn used(config: &Config) -> impl Iterator<Item = &Upstream> {
    let ids = (0..config.upstreams.len()).map(UpstreamId);
    ids.filter(|id| config.is_used(*id)).map(|id| config.upstream(id))
}

/// A source, or the one that the kernel chooses.
type IpAddrOrAny = Option<IpAddr>;

/// What has ports of its own: a source, and a server.
fn pairs(upstream: &Upstream) -> impl Iterator<Item = (IpAddrOrAny, &Endpoint)> {
    upstream.endpoints.iter().flat_map(|endpoint| {
        let fits = |source: &&IpAddr| match &endpoint.host {
            Host::Ip(ip) => ip.is_ipv4() == source.is_ipv4(),
            // Of both families the one with fewer addresses is not reckoned with.
            Host::Name(_) => source.is_ipv4() == mostly_ipv4(&upstream.sources),
        };
        let mut sources: Vec<_> = upstream.sources.iter().filter(fits).copied().map(Some).collect();
        if sources.is_empty() {
            sources.push(None);
        }
        sources.into_iter().map(move |source| (source, endpoint))
    })
}

fn mostly_ipv4(sources: &[IpAddr]) -> bool {
    sources.iter().filter(|source| source.is_ipv4()).count() * 2 >= sources.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(range: &str, reserved: &str) -> Option<Ports> {
        Ports::parse(range, reserved, "2\n")
    }

    #[test]
    fn ports_are_those_of_the_range_that_are_not_reserved() {
        assert_eq!(ports("32768\t60999\n", "\n").unwrap().of_one(), 28_232);
        assert_eq!(
            ports("1024 65535", "80,5222,7777-7779,65000-65535\n").unwrap().of_one(),
            64_512 - 4 - 536
        );
        assert_eq!(ports("50000 50003", "50000-50003").unwrap().of_one(), 0);
        assert_eq!(ports("50000 50003", "8000-8001,1-3").unwrap().of_one(), 4);
        for nonsense in ["", "1", "a b", "1 99999"] {
            assert_eq!(ports(nonsense, ""), None);
        }
        assert!(Ports::read().is_some_and(|ports| ports.of_one() > 0));
    }

    #[test]
    fn each_source_and_each_server_has_its_own() {
        let ports = ports("1000 1009", "").unwrap();
        let of = |more: &str| {
            let config = Config::parse("f", more).unwrap();
            let chat = used(&config).next().unwrap();
            (ports.of(chat), ports.of_all(&config))
        };
        assert_eq!(of(""), (10, Some(30)));
        assert_eq!(of("[upstream.chat]\nendpoints = [\"a.example:1\", \"a.example:2\"]"), (20, Some(40)));
        let sources = "[upstream.chat]\nsources = [\"192.0.2.1\", \"192.0.2.2\", \"2001:db8::1\"]\n";
        assert_eq!(of(sources), (20, Some(40)));
        let v6 = "endpoints = [\"[2606:4700::9]:1\", \"1.1.1.9:1\"]";
        assert_eq!(of(&format!("{sources}{v6}")), (30, Some(50)));
        // Two upstreams that are the same server share its ports.
        assert_eq!(of("[upstream.chat-http]\nendpoints = [\"g.whatsapp.net:5222\"]"), (10, Some(20)));
        assert_eq!(of("[upstream.media]\nroute = \"sni\"").1, None);
        let auto = "[[listener]]\nname = \"a\"\nbind = [\"127.0.0.1:1\"]\nmode = \"auto\"\nchat = \"chat\"\nmedia = \
                    \"media\"\n";
        assert_eq!(of(auto).1, Some(20));
        assert_eq!(of(&format!("{auto}fallback = \"127.0.0.1:8080\"")).1, None);
    }
}

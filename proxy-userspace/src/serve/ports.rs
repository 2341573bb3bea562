//! How many connections to its servers this machine has ports for.
//!
//! Each connection to one address and port takes a local port of the address that it comes from. What the kernel says of
//! them is in Documentation/networking/ip-sysctl.rst.

use std::{fs, net::IpAddr, ops::RangeInclusive};

use super::reserved::Reserved;
use crate::config::{Config, Endpoint, Host, Mode, Route, Upstream, UpstreamId, Wire};

/// How long a port rests after a connection that setu ended first (`TCP_TIMEWAIT_LEN`, include/net/tcp.h), seconds.
pub(crate) const REST: u64 = 60;

/// The local ports of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ports {
    /// `net.ipv4.ip_local_port_range`, for IPv6 as well.
    pub(crate) range: RangeInclusive<u16>,
    /// `net.ipv4.ip_local_reserved_ports`, which takes some of these out.
    pub(crate) reserved: Reserved,
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
        Some(Self { range, reserved: Reserved::parse(reserved)?, reuse: reuse.trim().parse().ok()? })
    }

    /// How many of the range are reserved, those of the wire among them once setu runs.
    pub(crate) fn reserved(&self, config: &Config) -> u64 {
        if config.wire.is_on() {
            self.reserved.with(&config.wire.ports).count_in(&self.range)
        } else {
            self.reserved.count_in(&self.range)
        }
    }

    /// Connections from one address to one address and port.
    pub(crate) fn of_one(&self, config: &Config) -> u64 {
        let wire = if config.wire.is_on() { config.wire.ports.len() as u64 } else { 0 };
        self.range.len() as u64 - self.reserved(config) + wire
    }

    /// Connections to an upstream. A name counts as one address.
    pub(crate) fn of(&self, upstream: &Upstream, config: &Config) -> u64 {
        self.of_one(config) * pairs(upstream).count() as u64
    }

    /// Connections to all upstreams to which listeners lead. `None` as for [`all_pairs`].
    pub(crate) fn of_all(&self, config: &Config) -> Option<u64> {
        Some(self.of_one(config) * all_pairs(config)?)
    }
}

/// How many [`pairs`] all upstreams have to which listeners lead, each counted once. `None`: clients name the servers, or some
/// go to the operator's own, so that this says nothing.
fn all_pairs(config: &Config) -> Option<u64> {
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
    Some(all.len() as u64)
}

/// Connections that there may be on the wire, by its room and its ports.
pub(crate) fn on_wire(config: &Config) -> u64 {
    let Wire { ports, room, .. } = &config.wire;
    let room = u64::from(*room);
    room.min(all_pairs(config).map_or(room, |pairs| pairs * ports.len() as u64))
}

/// Upstreams to which listeners lead.
pub(crate) fn used(config: &Config) -> impl Iterator<Item = &Upstream> {
    let ids = (0..config.upstreams.len()).map(UpstreamId);
    ids.filter(|id| config.is_used(*id)).map(|id| config.upstream(id))
}

/// A source, or the one that the kernel chooses.
pub(crate) type IpAddrOrAny = Option<IpAddr>;

/// What has ports of its own: a source, and a server.
pub(crate) fn pairs(upstream: &Upstream) -> impl Iterator<Item = (IpAddrOrAny, &Endpoint)> {
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
        let any = Config::parse("f", "").unwrap();
        let mut wire = any.clone();
        wire.wire.room = 1000;
        let ports = |range: &str, reserved: &str| ports(range, reserved).map(|ports| ports.of_one(&any));
        assert_eq!(ports("32768\t60999\n", "\n"), Some(28_232));
        assert_eq!(ports("1024 65535", "80,5222,7777-7779,65000-65535\n"), Some(64_512 - 4 - 536));
        assert_eq!(ports("50000 50003", "50000-50003"), Some(0));
        assert_eq!(ports("50000 50003", "8000-8001,1-3"), Some(4));
        for nonsense in ["", "1", "a b", "1 99999"] {
            assert_eq!(ports(nonsense, ""), None);
        }
        assert!(Ports::read().is_some_and(|ports| ports.of_one(&any) > 0));
        // Those of the wire are more, or are counted once.
        for (range, reserved, all) in [
            ("32768 60999", "", 28_232 + 22_000),
            ("1024 65535", "", 64_512),
            ("1024 65535", "9000-10009", 64_512 - 1000),
        ] {
            assert_eq!(Ports::parse(range, reserved, "2").unwrap().of_one(&wire), all, "{range} {reserved}");
        }
    }

    #[test]
    fn what_goes_on_the_wire_needs_room_and_a_port() {
        let of = |text: &str, room| {
            let mut config = Config::parse("f", text).unwrap();
            config.wire.room = room;
            on_wire(&config)
        };
        assert_eq!([of("", 0), of("", 65_536)], [0, 65_536]);
        assert_eq!(of("[wire]\nports = \"10000-10003\"", 65_536), 12, "three servers");
        assert_eq!(of("[wire]\nports = \"10000-10003\"", 7), 7);
        assert_eq!(of("[wire]\nports = \"10000-10003\"\n[upstream.media]\nroute = \"sni\"", 65_536), 65_536);
    }

    #[test]
    fn each_source_and_each_server_has_its_own() {
        let ports = ports("1000 1009", "").unwrap();
        let of = |more: &str| {
            let config = Config::parse("f", more).unwrap();
            let chat = used(&config).next().unwrap();
            (ports.of(chat, &config), ports.of_all(&config))
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

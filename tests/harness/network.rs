//! Three hosts in a row, between which links and peers can fail. No way leads out of them.
//!
//! ```text
//! clients 10.79.1.2 ── veth ── 10.79.1.1 proxy 10.79.2.1 ── veth ── 10.79.2.2, .3, .4 servers
//!         fd79:1::2            fd79:1::1       fd79:2::1            fd79:2::2, ::3, ::4
//! ```
//!
//! In place of each veth there may be a router, through which long packets do not pass ([`Network::routed`]).

use std::{
    net::{SocketAddr, TcpStream},
    process::Command,
};

use crate::{
    Path, Setu, config,
    netns::Netns,
    peers::{Upstream, call},
    pins::Pins,
};

/// The proxy as clients see it.
pub const PROXY: &str = "10.79.1.1";
/// Clients as the proxy sees them.
pub const CLIENT: &str = "10.79.1.2";
/// The proxy as servers see it.
pub const PROXY_TO_SERVERS: &str = "10.79.2.1";
/// The servers' host as the proxy sees it.
pub const SERVERS: [&str; 3] = ["10.79.2.2", "10.79.2.3", "10.79.2.4"];
/// Devices on the proxy's host, named after where they lead.
pub const TO_CLIENTS: &str = "clients";
/// As [`TO_CLIENTS`].
pub const TO_SERVERS: &str = "servers";

/// The proxy as clients of IPv6 see it.
pub const PROXY_V6: &str = "fd79:1::1";
/// As [`SERVERS`], by IPv6.
pub const SERVERS_V6: [&str; 3] = ["fd79:2::2", "fd79:2::3", "fd79:2::4"];

/// A link of two hosts: the networks of both families, and what the device on the proxy's host is called.
struct Link {
    v4: &'static str,
    v6: &'static str,
    device: &'static str,
    /// The networks of a router that stands there, on its far side and on the proxy's.
    routed: [(&'static str, &'static str); 2],
}

const LINKS: [Link; 2] = [
    Link {
        v4: "10.79.1",
        v6: "fd79:1:",
        device: TO_CLIENTS,
        routed: [("10.79.3", "fd79:3:"), ("10.79.4", "fd79:4:")],
    },
    Link {
        v4: "10.79.2",
        v6: "fd79:2:",
        device: TO_SERVERS,
        routed: [("10.79.5", "fd79:5:"), ("10.79.6", "fd79:6:")],
    },
];

/// The three hosts, and routers between them. Dropping it deletes them.
#[derive(Debug)]
pub struct Network {
    /// Where clients connect from.
    pub clients: Netns,
    /// Where setu runs.
    pub proxy: Netns,
    /// Where upstreams listen.
    pub servers: Netns,
    /// Toward the clients and toward the servers, where there are any.
    pub routers: [Option<Netns>; 2],
    /// What a setu on the wire leaves in the kernel.
    pub pins: Pins,
}

impl Network {
    /// Makes the hosts, and a table `faults` of nftables on the proxy's, whose chains `arriving` and `leaving` see what
    /// comes to it and goes from it.
    #[must_use]
    pub fn new() -> Self {
        Self::routed([None, None])
    }

    /// As [`Self::new`], with a router toward the clients and one toward the servers where a number says which packets it
    /// carries there: none that are longer. Senders are told of it (path MTU), and hosts' devices take 1500 as ever.
    #[must_use]
    pub fn routed(longest: [Option<u16>; 2]) -> Self {
        let network = Self {
            clients: Netns::alone(),
            proxy: Netns::alone(),
            servers: Netns::alone(),
            routers: longest.map(|longest| longest.map(|_| Netns::alone())),
            pins: Pins::new(),
        };
        let Self { clients, proxy, servers, routers, .. } = &network;
        for ((link, host), (router, longest)) in
            LINKS.iter().zip([clients, servers]).zip(routers.iter().zip(longest))
        {
            let Link { v4, v6, device, .. } = link;
            match (router, longest) {
                (Some(router), Some(longest)) => link.route(host, router, proxy, longest),
                _ => {
                    host.join("proxy", &format!("{v4}.2/24"), proxy, device, &format!("{v4}.1/24"));
                    host.ip(&format!("address add {v6}:2/64 dev proxy nodad"));
                    proxy.ip(&format!("address add {v6}:1/64 dev {device} nodad"));
                }
            }
        }
        for (v4, v6) in SERVERS.iter().zip(SERVERS_V6).skip(1) {
            servers.ip(&format!("address add {v4}/24 dev proxy"));
            servers.ip(&format!("address add {v6}/64 dev proxy nodad"));
        }
        proxy.nft("add table ip faults");
        for (chain, hook) in [("arriving", "input"), ("leaving", "output")] {
            proxy.nft(&format!("add chain ip faults {chain} {{ type filter hook {hook} priority 0; }}"));
        }
        network
    }

    /// Lets a router (of [`Self::routers`]) carry no longer packets than these from now on.
    pub fn narrow_router(&self, number: usize, longest: u16) {
        let (Some(router), Link { v4, v6, routed: [far, _], .. }) = (&self.routers[number], &LINKS[number])
        else {
            panic!("there is no router {number}")
        };
        router.ip(&format!("route replace {v4}.0/24 via {}.2 mtu lock {longest}", far.0));
        router.ip(&format!("route replace {v6}:/64 via {}:2 mtu lock {longest}", far.1));
    }

    /// Gives the clients' host all addresses of 10.80.0.0/12 and of 2001:db8::/32, so that each client may have an
    /// address, a network or a site of its own.
    pub fn populate(&self) {
        let Self { clients, proxy, .. } = self;
        for (range, way) in [("10.80.0.0/12", CLIENT), ("2001:db8::/32", "fd79:1::2")] {
            clients.ip(&format!("route add local {range} dev lo"));
            proxy.ip(&format!("route add {range} via {way}"));
        }
        // What is local by a route alone may be bound as IPv4, but as IPv6 only with this (inet6_bind).
        clients.set("net/ipv6/ip_nonlocal_bind", "1");
    }

    /// Starts setu before upstreams, listening for clients.
    #[must_use]
    pub fn setu(&self, path: Path, endpoints: &[String], more: &str) -> Setu {
        self.setu_with_log(path, endpoints, more, "debug")
    }

    /// As [`Self::setu`], with a level of logging.
    #[must_use]
    pub fn setu_with_log(&self, path: Path, endpoints: &[String], more: &str, level: &str) -> Setu {
        let config = self.config(path, endpoints, more);
        match path {
            Path::Wire => self.start_with_pins(&config, level, &[]),
            _ => self.start(&config, level, &[]),
        }
    }

    /// The configuration of a setu on the proxy's host.
    #[must_use]
    pub fn config(&self, path: Path, endpoints: &[String], more: &str) -> String {
        let config = config(path, &endpoints.join("\", \""), more);
        // Only a process of its own user may change its limits (prlimit(2)); capabilities it drops all the same.
        let user = "allow_private_upstreams = true\nuser = \"root\"";
        let config = config.replace("allow_private_upstreams = true", user);
        config.replace("127.0.0.1:0", &format!("{PROXY}:0"))
    }

    /// Starts setu by a configuration, with a level of logging and more arguments.
    #[must_use]
    pub fn start(&self, config: &str, level: &str, arguments: &[&str]) -> Setu {
        let command = self.proxy.command(&Setu::binary().display().to_string());
        self.start_by(command, config, level, arguments)
    }

    /// As [`Self::start`], where /sys/fs/bpf is [`Self::pins`].
    #[must_use]
    pub fn start_with_pins(&self, config: &str, level: &str, arguments: &[&str]) -> Setu {
        let command = self.pins.command(&self.proxy, &Setu::binary().display().to_string());
        self.start_by(command, config, level, arguments)
    }

    fn start_by(&self, mut command: Command, config: &str, level: &str, arguments: &[&str]) -> Setu {
        command.env("SETU_LOG", format!("setu={level}"));
        let setu = Setu::start_by(command, config, arguments);
        let _ = setu.descriptors_at_rest();
        setu
    }

    /// An upstream on one of [`SERVERS`] or [`SERVERS_V6`].
    #[must_use]
    pub fn upstream(&self, host: &str) -> Upstream {
        self.servers.within(|| Upstream::on(&SocketAddr::new(host.parse().unwrap(), 0).to_string()))
    }

    /// Makes the proxy's device for a link one of a bridge, which has its addresses from then on; its name is returned.
    /// What was routed by the device is not.
    #[must_use]
    pub fn bridge(&self, device: &str) -> String {
        let (proxy, bridge) = (&self.proxy, format!("b{device}"));
        let Some(Link { v4, v6, .. }) = LINKS.iter().find(|link| link.device == device) else {
            panic!("{device} is no device of a link")
        };
        proxy.ip(&format!("link add {bridge} type bridge"));
        proxy.ip(&format!("address flush dev {device}"));
        proxy.ip(&format!("link set {device} master {bridge}"));
        proxy.ip(&format!("address add {v4}.1/24 dev {bridge}"));
        proxy.ip(&format!("link set {bridge} up"));
        proxy.ip(&format!("address add {v6}:1/64 dev {bridge} nodad"));
        bridge
    }

    /// A client, which has spoken.
    #[must_use]
    pub fn client(&self, setu: &Setu) -> TcpStream {
        let proxy = setu.address("chat");
        self.clients.within(|| call(proxy))
    }

    /// A client and the upstream's end.
    #[must_use]
    pub fn flow(&self, setu: &Setu, upstream: &Upstream) -> (TcpStream, TcpStream) {
        let client = self.client(setu);
        (client, upstream.answer())
    }

    /// Loses packets on the proxy's host, both ways, until [`Self::mend`]: a match of nftables for one device, such as
    /// `tcp dport 80`, or nothing for all of it.
    pub fn lose(&self, device: &str, which: &str) {
        self.proxy.nft(&format!(
            "add rule ip faults arriving iifname {device} {which} drop; \
             add rule ip faults leaving oifname {device} {which} drop"
        ));
    }

    /// Loses nothing any more.
    pub fn mend(&self) {
        self.proxy.nft("flush table ip faults");
    }

    /// Holds a device of the proxy's host to a rate in what it sends.
    pub fn slow_down(&self, device: &str, rate: &str) {
        // The queue is a modem's: a quarter of a second at 1 Mbit/s.
        self.narrow(device, rate, "16kb", "32kb");
    }

    /// As [`Self::slow_down`], with what may go at once, and what may wait beyond that.
    pub fn narrow(&self, device: &str, rate: &str, burst: &str, limit: &str) {
        let mut tc = self.proxy.command("tc");
        let shape = ["rate", rate, "burst", burst, "limit", limit];
        let status = tc.args(["qdisc", "replace", "dev", device, "root", "tbf"]).args(shape).status();
        assert!(status.unwrap().success(), "tc is needed: cargo xtask setup");
    }

    /// TCP connections of the proxy's host that have not ended; `ss` counts those without a process as well.
    #[must_use]
    pub fn connections(&self) -> usize {
        let mut ss: Command = self.proxy.command("ss");
        let output = ss.args(["-Htan", "state", "connected", "exclude", "time-wait"]).output().unwrap();
        assert!(output.status.success(), "ss is needed: cargo xtask setup");
        String::from_utf8_lossy(&output.stdout).lines().count()
    }
}

impl Link {
    /// Puts a router between a host and the proxy, both of which keep their addresses.
    fn route(&self, host: &Netns, router: &Netns, proxy: &Netns, longest: u16) {
        let Self { v4, v6, device, routed: [far, near] } = self;
        host.join("proxy", &format!("{}.2/24", far.0), router, "far", &format!("{}.1/24", far.0));
        proxy.join(device, &format!("{}.2/24", near.0), router, "near", &format!("{}.1/24", near.0));
        host.ip(&format!("address add {}:2/64 dev proxy nodad", far.1));
        router.ip(&format!("address add {}:1/64 dev far nodad", far.1));
        proxy.ip(&format!("address add {}:2/64 dev {device} nodad", near.1));
        router.ip(&format!("address add {}:1/64 dev near nodad", near.1));
        for (namespace, device, last) in [(host, "proxy", 2), (proxy, *device, 1)] {
            namespace.ip(&format!("address add {v4}.{last}/32 dev {device}"));
            namespace.ip(&format!("address add {v6}:{last}/128 dev {device} nodad"));
        }
        // Each host's own network is on the other side of the router.
        host.ip(&format!("route add {v4}.1 via {}.1 src {v4}.2", far.0));
        host.ip(&format!("route add {v6}:1 via {}:1 src {v6}:2", far.1));
        proxy.ip(&format!("route add {v4}.0/24 via {}.1 src {v4}.1", near.0));
        proxy.ip(&format!("route add {v6}:/64 via {}:1 src {v6}:1", near.1));
        router.ip(&format!("route add {v4}.1 via {}.2", near.0));
        router.ip(&format!("route add {v6}:1 via {}:2", near.1));
        router.ip(&format!("route add {v4}.0/24 via {}.2 mtu lock {longest}", far.0));
        router.ip(&format!("route add {v6}:/64 via {}:2 mtu lock {longest}", far.1));
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            router.set(key, "1");
        }
    }
}

impl Network {
    /// Bytes that the kernel holds for TCP sockets of the proxy's host, received and to be sent (`skmem` of ss(8)).
    #[must_use]
    pub fn socket_memory(&self) -> u64 {
        let output = self.proxy.command("ss").args(["-Htmn"]).output().unwrap();
        assert!(output.status.success(), "ss is needed: cargo xtask setup");
        let text = String::from_utf8(output.stdout).unwrap();
        let memory = text.split("skmem:(").skip(1).map(|rest| rest.split_once(')').unwrap().0);
        let fields = memory.flat_map(|fields| fields.split(','));
        // r and w are followed by a number at once; rb and wb, with a second letter, are limits.
        let numbers = fields.filter_map(|field| field.strip_prefix(['r', 'w'])?.parse::<u64>().ok());
        numbers.sum()
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

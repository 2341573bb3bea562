//! Three hosts in a row, between which links and peers can fail. No way leads out of them.
//!
//! ```text
//! clients 10.79.1.2 ── veth ── 10.79.1.1 proxy 10.79.2.1 ── veth ── 10.79.2.2, .3, .4 servers
//! ```

use std::{net::TcpStream, process::Command};

use crate::{
    Path, Setu, config,
    netns::Netns,
    peers::{Upstream, call},
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

/// The proxy as clients of IPv6 see it, once there are some: [`Network::populate`].
pub const PROXY_V6: &str = "fd79:1::1";

/// The three hosts. Dropping it deletes them.
#[derive(Debug)]
pub struct Network {
    /// Where clients connect from.
    pub clients: Netns,
    /// Where setu runs.
    pub proxy: Netns,
    /// Where upstreams listen.
    pub servers: Netns,
}

impl Network {
    /// Makes the hosts, and a table `faults` of nftables on the proxy's, whose chains `arriving` and `leaving` see what
    /// comes to it and goes from it.
    #[must_use]
    pub fn new() -> Self {
        let network = Self { clients: Netns::alone(), proxy: Netns::alone(), servers: Netns::alone() };
        let Self { clients, proxy, servers } = &network;
        clients.join("proxy", "10.79.1.2/24", proxy, TO_CLIENTS, "10.79.1.1/24");
        servers.join("proxy", "10.79.2.2/24", proxy, TO_SERVERS, "10.79.2.1/24");
        for more in &SERVERS[1..] {
            servers.ip(&format!("address add {more}/24 dev proxy"));
        }
        proxy.nft("add table ip faults");
        for (chain, hook) in [("arriving", "input"), ("leaving", "output")] {
            proxy.nft(&format!("add chain ip faults {chain} {{ type filter hook {hook} priority 0; }}"));
        }
        network
    }

    /// Gives the clients' host all addresses of 10.80.0.0/12 and of 2001:db8::/32, so that each client may have an
    /// address, a network or a site of its own.
    pub fn populate(&self) {
        let Self { clients, proxy, .. } = self;
        clients.ip("address add fd79:1::2/64 dev proxy nodad");
        proxy.ip(&format!("address add {PROXY_V6}/64 dev {TO_CLIENTS} nodad"));
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
        self.start(&self.config(path, endpoints, more), level, &[])
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
        let mut command = self.proxy.command(&Setu::binary().display().to_string());
        command.env("SETU_LOG", format!("setu={level}"));
        let setu = Setu::start_by(command, config, arguments);
        let _ = setu.descriptors_at_rest();
        setu
    }

    /// An upstream on one of [`SERVERS`].
    #[must_use]
    pub fn upstream(&self, host: &str) -> Upstream {
        self.servers.within(|| Upstream::on(&format!("{host}:0")))
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

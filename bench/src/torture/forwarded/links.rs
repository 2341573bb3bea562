//! Three hosts, and forwarders between them.
//!
//! ```text
//! clients .2 ── forwarder ── .1 proxy .1 ── forwarder ── .2, .3, .4 servers
//!          10.79.1, fd79:1::            10.79.2, fd79:2::
//! ```

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result};
use setu_tests::{
    Path, Setu,
    netns::Netns,
    network::{Network, TO_CLIENTS, TO_SERVERS},
    packets::without_offloads,
};

use super::{
    super::pattern::mix,
    forwarder::{Carried, DEVICES, Forwarder},
    way::Way,
};

/// The device of clients and of servers that leads to the proxy.
const TO_PROXY: &str = "proxy";
/// Namespaces have their own settings, /sys shows those of who mounted it, and what setu pins lasts no longer than this
/// mount.
const ENTER: &str = "mount -t sysfs sysfs /sys && mount -t bpf bpf /sys/fs/bpf && exec \"$0\" \"$@\"";
/// How long the admin endpoint may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The hosts and what is between them. Dropping it deletes all.
pub(crate) struct Links {
    // Forwarders end before their hosts are deleted.
    forwarders: Vec<Forwarder>,
    pub(crate) network: Network,
    _hosts: [Netns; 2],
}

impl Links {
    /// Makes them; `seed` decides on frames.
    ///
    /// # Errors
    /// When a forwarder cannot have its devices.
    pub(crate) fn new(way: Way, seed: u64) -> Result<Self> {
        let network = Network::new();
        let hosts = [Netns::alone(), Netns::alone()];
        let Network { clients, proxy, servers, .. } = &network;
        let mut forwarders = Vec::new();
        for (number, (end, device, last)) in
            [(clients, TO_CLIENTS, 2), (servers, TO_SERVERS, 4)].iter().enumerate()
        {
            let (forwarder, net) = (&hosts[number], number + 1);
            // The proxy's end goes with it.
            end.ip(&format!("link delete {TO_PROXY}"));
            // It carries what others say, and says nothing.
            forwarder.set("net/ipv6/conf/all/disable_ipv6", "1");
            for (host, device, far, addresses) in
                [(*end, TO_PROXY, DEVICES[0], 2..=*last), (proxy, *device, DEVICES[1], 1..=1)]
            {
                let first = format!("10.79.{net}.{}/24", addresses.start());
                host.join(device, &first, forwarder, far, "169.254.0.1/32");
                forwarder.ip(&format!("address flush dev {far}"));
                for more in addresses.clone().skip(1) {
                    host.ip(&format!("address add 10.79.{net}.{more}/24 dev {device}"));
                }
                for each in addresses {
                    host.ip(&format!("address add fd79:{net}::{each}/64 dev {device} nodad"));
                }
                host.within(|| without_offloads(device)).context("offloads cannot be switched off")?;
            }
            forwarders.push(Forwarder::new(forwarder, way, mix(seed ^ net as u64))?);
        }
        for host in [clients, proxy, servers] {
            for (key, on) in [("tcp_timestamps", way.timestamps), ("tcp_sack", way.sack)] {
                host.set(&format!("net/ipv4/{key}"), if on { "1" } else { "0" });
            }
        }
        Ok(Self { forwarders, network, _hosts: hosts })
    }

    /// Starts setu on the proxy's host, with an admin endpoint, and a bpffs of its own.
    pub(crate) fn start(&self, path: Path, way: Way, endpoints: &[String], more: &str) -> Setu {
        let config = self.network.config(path, endpoints, more);
        let config = config.replace("[admin]\nbind = []", "[admin]\nbind = [\"127.0.0.1:0\"]");
        let config = if way.ipv6 { config.replace("10.79.1.1:0", "[fd79:1::1]:0") } else { config };
        let mut command = self.network.proxy.command("unshare");
        command.args(["--mount", "sh", "-c", ENTER]).arg(Setu::binary());
        let setu = Setu::start_by(command, &config, &[]);
        let _ = setu.descriptors_at_rest();
        setu
    }

    /// Setu's counters, by name and labels.
    ///
    /// # Errors
    /// When setu does not answer.
    pub(crate) fn counters(&self, admin: SocketAddr) -> Result<BTreeMap<String, u64>> {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(format!("GET /metrics HTTP/1.1\r\nHost: {admin}\r\n\r\n").as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = self.network.proxy.within(ask).context("setu's metrics cannot be read")?;
        let counter = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            // Numbers are written as floating ones.
            Some((name.to_owned(), value.parse::<f64>().ok()? as u64))
        };
        Ok(answer.lines().filter_map(counter).collect())
    }

    /// What the hosts' TCP counted: segments sent again on the way, and resets of the proxy's stack.
    pub(crate) fn tcp(&self) -> BTreeMap<String, u64> {
        let Network { clients, proxy, servers, .. } = &self.network;
        let hosts = [(clients, "clients"), (proxy, "setu's host"), (servers, "servers")];
        let again = hosts.map(|(host, name)| {
            (format!("segments that {name} sent again"), snmp(host, "RetransSegs").unwrap_or(0))
        });
        let resets = snmp(proxy, "OutRsts").unwrap_or(0);
        again.into_iter().chain([("resets that setu's host sent".to_owned(), resets)]).collect()
    }

    /// All connections of all hosts, for a person who looks for why a flow hangs.
    pub(crate) fn state(&self) -> Vec<String> {
        let Network { clients, proxy, servers, .. } = &self.network;
        let of = |(host, name): (&Netns, &str)| {
            let output = host.command("ss").args(["-OHtane", "-i", "-m", "-o"]).output();
            let text = output.map_or_else(
                |error| error.to_string(),
                |output| String::from_utf8_lossy(&output.stdout).into_owned(),
            );
            text.lines().map(|line| format!("{name}: {line}")).collect::<Vec<_>>()
        };
        [(clients, "clients"), (proxy, "proxy"), (servers, "servers")].into_iter().flat_map(of).collect()
    }

    /// Ends the forwarders; what both did.
    ///
    /// # Errors
    /// When one could not go on.
    pub(crate) fn end(&mut self) -> Result<Carried> {
        let mut sum = Carried::default();
        for forwarder in self.forwarders.drain(..) {
            let Carried { frames, lost, repeated, overflowed } = forwarder.end()?;
            sum.frames += frames;
            sum.lost += lost;
            sum.repeated += repeated;
            sum.overflowed += overflowed;
        }
        Ok(sum)
    }
}

/// A counter of a host's TCP (/proc/net/snmp: a line of names, then one of numbers).
fn snmp(host: &Netns, name: &str) -> Option<u64> {
    let output = host.command("cat").arg("/proc/net/snmp").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let at = names.split(' ').position(|field| field == name)?;
    numbers.split(' ').nth(at)?.parse().ok()
}

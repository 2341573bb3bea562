//! Makes a round's conditions, and makes them fair again.
//!
//! netem is not in every kernel; these are: queues of tc before the proxy's devices, loss by nftables on its host, and on
//! the way to it, on the peers' hosts, repetition (`dup`) and reordering (a class of HTB that is slower than the others).

use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use setu_tests::{
    netns::Netns,
    network::{CLIENT, Network, PROXY, PROXY_TO_SERVERS, SERVERS, TO_CLIENTS, TO_SERVERS},
};

use super::conditions::{Conditions, Memory};

/// The device of clients and of servers that leads to the proxy.
const TO_PROXY: &str = "proxy";
/// A lost reset is not sent again; nobody could tell a flow that hangs from one whose end was lost.
const NO_RESET: &str = "tcp flags & rst == 0";

/// What setu must find when it starts: settings of its host, and packets' sizes.
pub(crate) fn prepare(network: &Network, conditions: &Conditions) {
    introduce(network);
    let Network { clients, proxy, servers, .. } = network;
    for (host, memory) in
        [(clients, conditions.clients), (proxy, conditions.proxy), (servers, conditions.servers)]
    {
        let Memory { receive, send } = memory;
        host.set("net/ipv4/tcp_rmem", receive);
        host.set("net/ipv4/tcp_wmem", send);
        if allowed(host, conditions.congestion) {
            host.set("net/ipv4/tcp_congestion_control", conditions.congestion);
        }
    }
    for (host, device) in [(clients, TO_PROXY), (servers, TO_PROXY), (proxy, TO_CLIENTS), (proxy, TO_SERVERS)]
    {
        host.ip(&format!("link set {device} mtu {}", conditions.mtu));
        if conditions.single_segments {
            host.ip(&format!("link set {device} gso_max_segs 1"));
        }
    }
}

/// Lets hosts know each other without asking: a question that a full queue drops makes the other side unreachable, and
/// that ends connections (`neigh_timer_handler`, net/core/neighbour.c).
fn introduce(network: &Network) {
    let Network { clients, proxy, servers, .. } = network;
    let ends = [
        (clients, TO_PROXY, "02:00:00:00:01:02", &[CLIENT][..]),
        (proxy, TO_CLIENTS, "02:00:00:00:01:01", &[PROXY][..]),
        (proxy, TO_SERVERS, "02:00:00:00:02:01", &[PROXY_TO_SERVERS][..]),
        (servers, TO_PROXY, "02:00:00:00:02:02", &SERVERS[..]),
    ];
    for (host, device, hardware, _) in ends {
        host.ip(&format!("link set {device} address {hardware}"));
    }
    for (one, other) in [(0, 1), (1, 0), (2, 3), (3, 2)] {
        let (host, device, ..) = ends[one];
        let (.., hardware, addresses) = ends[other];
        for address in addresses {
            host.ip(&format!("neighbor replace {address} lladdr {hardware} dev {device} nud permanent"));
        }
    }
}

/// Whether the congestion control may be chosen on a host that is not the machine itself: not all are loaded, and not all
/// that are may be (`tcp_set_default_congestion_control`, net/ipv4/tcp_cong.c).
fn allowed(host: &Netns, congestion: &str) -> bool {
    let output = host.command("cat").arg("/proc/sys/net/ipv4/tcp_allowed_congestion_control").output();
    output.is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout).split_whitespace().any(|name| name == congestion)
    })
}

/// The round's weather, with its busy loops; the network goes with its hosts.
pub(crate) struct Weather<'a> {
    network: &'a Network,
    hogs: Option<Hogs>,
}

impl<'a> Weather<'a> {
    /// Makes it bad.
    ///
    /// # Errors
    /// When tc or nft cannot.
    pub(crate) fn new(network: &'a Network, conditions: &Conditions) -> Result<Self> {
        let Network { clients, proxy, servers, .. } = network;
        for (device, queue) in [(TO_CLIENTS, conditions.to_clients), (TO_SERVERS, conditions.to_servers)] {
            if queue.discipline != "none" {
                tc(proxy, &format!("qdisc add dev {device} root {}", queue.discipline))?;
            }
        }
        if conditions.lost > 0 {
            let lose = format!("{NO_RESET} numgen random mod 1000 < {} drop", conditions.lost);
            proxy.nft(&format!("add rule ip faults arriving {lose}; add rule ip faults leaving {lose}"));
        }
        for host in [clients, servers] {
            disturb(host, conditions)?;
        }
        Ok(Self { network, hogs: Some(Hogs::new(conditions.hogs)?) })
    }

    /// Makes it fair, so that what is left ends soon.
    ///
    /// # Errors
    /// When tc cannot.
    pub(crate) fn mend(&mut self) -> Result<()> {
        self.hogs = None;
        let Network { clients, proxy, servers, .. } = self.network;
        self.network.mend();
        for host in [clients, servers] {
            host.nft("add table netdev torture; flush table netdev torture");
        }
        for (host, device) in
            [(proxy, TO_CLIENTS), (proxy, TO_SERVERS), (clients, TO_PROXY), (servers, TO_PROXY)]
        {
            // In place of whatever is there, and of nothing.
            tc(host, &format!("qdisc replace dev {device} root pfifo limit 1000"))?;
        }
        Ok(())
    }
}

/// Repeats and delays on the way from a peer to the proxy.
fn disturb(host: &Netns, conditions: &Conditions) -> Result<()> {
    if conditions.repeated == 0 && conditions.late == 0 {
        return Ok(());
    }
    host.nft(&format!(
        "add table netdev torture; add chain netdev torture leaving {{ type filter hook egress device {TO_PROXY} \
         priority 0; }}"
    ));
    if conditions.repeated > 0 {
        host.nft(&format!(
            "add rule netdev torture leaving numgen random mod 1000 < {} dup to {TO_PROXY}",
            conditions.repeated
        ));
    }
    if conditions.late > 0 {
        // What of a class is sent at 2 Mbit/s comes some milliseconds after what the other sent meanwhile.
        tc(host, &format!("qdisc add dev {TO_PROXY} root handle 1: htb default 10"))?;
        tc(host, &format!("class add dev {TO_PROXY} parent 1: classid 1:10 htb rate 20gbit quantum 60000"))?;
        tc(
            host,
            &format!("class add dev {TO_PROXY} parent 1: classid 1:20 htb rate 2mbit burst 2kb quantum 1500"),
        )?;
        tc(host, &format!("qdisc add dev {TO_PROXY} parent 1:10 pfifo limit 1000"))?;
        tc(host, &format!("qdisc add dev {TO_PROXY} parent 1:20 pfifo limit 20"))?;
        host.nft(&format!(
            "add rule netdev torture leaving {NO_RESET} numgen random mod 1000 < {} meta priority set 1:20",
            conditions.late
        ));
    }
    Ok(())
}

fn tc(host: &Netns, arguments: &str) -> Result<()> {
    let status = host.command("tc").args(arguments.split(' ')).status();
    let status = status.context("tc is needed: cargo xtask setup")?;
    ensure!(status.success(), "tc {arguments}: {status}");
    Ok(())
}

/// A process of busy loops. Dropping it ends it.
pub(crate) struct Hogs(Option<Child>);

impl Hogs {
    /// Starts so many, which may be none.
    ///
    /// # Errors
    /// When there can be no process.
    pub(crate) fn new(count: u32) -> Result<Self> {
        let start = || {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["hogs", &count.to_string()]).stdin(Stdio::null());
            command.spawn().context("busy loops cannot be started")
        };
        (count > 0).then(start).transpose().map(Self)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        if let Some(hogs) = &mut self.0 {
            // An error means that it has ended.
            let _ = hogs.kill();
            let _ = hogs.wait();
        }
    }
}

/// The busy loops: until the parent stops them, or is gone.
pub(crate) fn be_hogs(count: u32) {
    let parent = std::os::unix::process::parent_id();
    let hog = || {
        let mut number = 1_u64;
        while std::os::unix::process::parent_id() == parent {
            for _ in 0..1_000_000 {
                number = std::hint::black_box(super::pattern::mix(number));
            }
        }
    };
    std::thread::scope(|scope| (0..count).for_each(|_| drop(scope.spawn(hog))));
}

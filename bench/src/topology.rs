//! Three hosts: clients, the proxy, servers. Nothing of it touches the machine's own network or settings.
//!
//! ```text
//! clients 10.78.1.2 ── veth ── 10.78.1.1 proxy 10.78.2.1 ── veth ── 10.78.2.2 servers
//! ```

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use setu_tests::{machine, netns::Netns};

use crate::load::SERVER_PORT;

/// Where all clients are.
pub(crate) const CLIENTS: &str = "10.78.1.0/24";
/// The proxy, as the clients see it.
pub(crate) const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 78, 1, 1));
/// The server, as the proxy sees it; through the proxy's host the clients reach it too.
pub(crate) const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 78, 2, 2)), SERVER_PORT);

/// What is not the kernel's default in all three namespaces, and why.
pub(crate) const SETTINGS: [(&str, &str, &str); 2] = [
    (
        "net/ipv4/ip_local_port_range",
        "1024 65535",
        "new connections come faster than the default range lasts",
    ),
    ("net/ipv4/tcp_tw_reuse", "1", "so that a port may be used again after a second, not a minute"),
];

/// The three namespaces. Dropping it deletes them.
pub(crate) struct Topology {
    pub(crate) clients: Netns,
    pub(crate) proxy: Netns,
    pub(crate) servers: Netns,
}

impl Topology {
    /// Makes and joins them.
    ///
    /// # Errors
    /// Without root.
    pub(crate) fn new() -> Result<Self> {
        ensure!(machine::is_root(), "network namespaces need root: run it as root, or by sudo");
        let topology = Self { clients: Netns::alone(), proxy: Netns::alone(), servers: Netns::alone() };
        let Self { clients, proxy, servers } = &topology;
        clients.join("proxy", "10.78.1.2/24", proxy, "clients", "10.78.1.1/24");
        servers.join("proxy", "10.78.2.2/24", proxy, "servers", "10.78.2.1/24");
        clients.ip("route add default via 10.78.1.1");
        servers.ip("route add default via 10.78.2.1");
        for namespace in [clients, proxy, servers] {
            for (key, value, _) in SETTINGS {
                set(namespace, key, value)?;
            }
        }
        // For the ceilings.
        set(proxy, "net/ipv4/ip_forward", "1")?;
        Ok(topology)
    }
}

/// Sets what is each namespace's own: /proc/sys/net shows the one of the process that looks.
fn set(namespace: &Netns, key: &str, value: &str) -> Result<()> {
    let mut command = namespace.command("sh");
    let status = command.args(["-c", &format!("echo {value} > /proc/sys/{key}")]).status()?;
    ensure!(status.success(), "{key} cannot be set to {value}");
    Ok(())
}

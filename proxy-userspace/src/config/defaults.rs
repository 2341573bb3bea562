//! What holds where a file says nothing: the reference's ports and upstreams, and limits that harm no honest client.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZero,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    ClientAddresses, Config, Dial, Endpoint, Host, Limits, Listener, Mode, PathChoice, Route,
    SendProxyProtocol, Timeouts, Tls, Upstream, UpstreamId, Wire,
};
use crate::config::{AllowList, Pattern, Ranges};

const CHAT: UpstreamId = UpstreamId(0);
const CHAT_HTTP: UpstreamId = UpstreamId(1);
const MEDIA: UpstreamId = UpstreamId(2);

/// As the reference has them, but for half-close: its 1 s cuts slow phones off. It has none for a peer that vanished; two
/// minutes are longer than a phone takes to change networks and come back.
const TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(5),
    inspect: Duration::from_secs(5),
    handshake: Duration::from_secs(5),
    idle: Duration::from_secs(200),
    half_close: Duration::from_secs(10),
    vanished: Duration::from_secs(120),
    lame_duck: Duration::ZERO,
    drain: Duration::from_secs(30),
};

/// Twice as long as a server that is silent takes to fail (`timeouts.connect`), so that by then all have answered or failed.
const READY_AFTER: Duration = Duration::from_secs(10);

/// Thousands of phones can share one address of a carrier's NAT (RFC 6888 lets an operator choose how many), and each
/// holds one chat connection and a few for media: 4096 are about a thousand phones that are active at once.
const PER_SOURCE: Option<NonZero<u32>> = NonZero::new(4096);
/// When a carrier's link comes back, all phones behind it connect at once: the burst of ten seconds' worth lets 2000
/// through, and then 200 each second.
const PER_SOURCE_RATE: Option<NonZero<u32>> = NonZero::new(200);

/// Room for the phones of a small server, at 28 MB of the kernel's memory.
const MAX_FLOWS: NonZero<u32> = NonZero::new(1 << 16).unwrap();

impl Config {
    /// Whether the operator has said anything of proxies before setu: which listeners there are, or whom to trust.
    #[must_use]
    pub fn expects_proxies(&self) -> bool {
        let defaults = config();
        // By their names, for the ports may be offset.
        let names = |config: &Self| config.listeners.iter().map(|one| one.name.clone()).collect::<Vec<_>>();
        self.trusted != defaults.trusted || names(self) != names(&defaults)
    }
}

/// The defaults.
pub(super) fn config() -> Config {
    let chat = Mode::Chat { upstream: CHAT, gate: false };
    let chat_tls = Mode::ChatTls { upstream: CHAT, gate: false };
    let chat_http = Mode::Chat { upstream: CHAT_HTTP, gate: false };
    let media = Mode::Media { upstream: MEDIA };
    let listeners = [
        ("chat-tls", 443, chat_tls, false),
        ("chat-tls-proxy", 8443, chat_tls, true),
        ("chat", 5222, chat, false),
        ("chat-proxy", 8222, chat, true),
        ("chat-http", 80, chat_http, false),
        ("chat-http-proxy", 8080, chat_http, true),
        ("media", 587, media, false),
        ("media-alt", 7777, media, false),
    ];
    Config {
        path: PathChoice::Auto,
        // Below the ports that the kernel chooses by default, 32768 to 60999. A segment of 1400 bytes fits through most
        // tunnels that are on the way.
        wire: Wire { auto: true, ports: 10_000..=31_999, max_flows: MAX_FLOWS, mss: 1400, room: 0 },
        listeners: listeners
            .map(|(name, port, mode, accept_proxy_protocol)| Listener {
                name: name.into(),
                bind: vec![(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()],
                mode,
                accept_proxy_protocol,
                dial: Dial::FirstByte,
            })
            .into(),
        upstreams: vec![
            upstream("chat", "g.whatsapp.net", 5222, SendProxyProtocol::V1),
            upstream("chat-http", "g.whatsapp.net", 80, SendProxyProtocol::V1),
            upstream("media", "whatsapp.net", 443, SendProxyProtocol::Off),
        ],
        timeouts: TIMEOUTS,
        limits: Limits {
            connections: None,
            per_source: PER_SOURCE,
            per_source_rate: PER_SOURCE_RATE,
            exempt: Ranges::new(Vec::new()),
            pending: None,
            kernel_bytes: None,
        },
        allowed_names: AllowList::new(
            ["whatsapp.net", "whatsapp.com"]
                .into_iter()
                .flat_map(|name| [Pattern::Exact(name.into()), Pattern::Below(name.into())])
                .collect(),
        ),
        trusted: Ranges::new(trusted()),
        tls: Tls { files: None, names: Vec::new(), state_dir: "/var/lib/setu".into() },
        dns_servers: Vec::new(),
        admin: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8199)],
        admin_hosts: Vec::new(),
        ready_after: READY_AFTER,
        client_addresses: ClientAddresses::Never,
        allow_private_upstreams: false,
        user: None,
    }
}

fn upstream(name: &str, host: &str, port: u16, send_proxy_protocol: SendProxyProtocol) -> Upstream {
    Upstream {
        name: name.into(),
        endpoints: vec![Endpoint { host: Host::Name(host.into()), port }],
        send_proxy_protocol,
        route: Route::Fixed,
        sources: Vec::new(),
    }
}

/// Loopback, and what is never routed on the internet: RFC 1918, RFC 3927, RFC 4193 and RFC 4291.
fn trusted() -> Vec<IpNet> {
    let v4 = [
        (Ipv4Addr::new(127, 0, 0, 0), 8),
        (Ipv4Addr::new(10, 0, 0, 0), 8),
        (Ipv4Addr::new(172, 16, 0, 0), 12),
        (Ipv4Addr::new(192, 168, 0, 0), 16),
        (Ipv4Addr::new(169, 254, 0, 0), 16),
    ];
    let v6 = [
        (Ipv6Addr::LOCALHOST, 128),
        (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
        (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    ];
    let v4 = v4.map(|(ip, prefix)| Ipv4Net::new_assert(ip, prefix).into());
    let v6 = v6.map(|(ip, prefix)| Ipv6Net::new_assert(ip, prefix).into());
    v4.into_iter().chain(v6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_who_says_nothing_of_proxies_expects_none() {
        let expects = |text: &str| Config::parse("test", text).unwrap().expects_proxies();
        let listener =
            "[[listener]]\nname = \"a\"\nbind = [\"0.0.0.0:1\"]\nmode = \"chat\"\nupstream = \"chat\"";
        assert!(!expects("[relay]\npath = \"userspace\""));
        assert!(expects("[proxy_protocol]\ntrusted = [\"192.0.2.1\"]") && expects(listener));
        let mut offset = config();
        crate::config::arguments::offset_ports(&mut offset, 10_000).unwrap();
        assert!(!offset.expects_proxies());
    }
}

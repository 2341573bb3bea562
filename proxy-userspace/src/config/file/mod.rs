//! The file as written: raw types, the only ones that are deserialised, and their way to validated ones.

mod listener;
mod source;
mod upstream;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    num::NonZero,
    ops::RangeInclusive,
    path::{self, Path},
};

use serde::Deserialize;
use toml::{
    Spanned,
    de::{DeTable, Deserializer},
};

use super::{
    CertificateFiles, Config, Endpoint, Host, Limits, Mode, PathChoice, Route, Timeouts, Tls, Upstream, Wire,
    defaults, error::ConfigError, schema,
};
use crate::config::{AllowList, is_host_name};
use source::{Source, Text, Texts};

/// Flows on the wire whose map takes less than 2 GB of the kernel's memory.
const MAX_FLOWS: u32 = 4_000_000;
/// What every host takes (RFC 9293, section 3.7.1), and what fits into the jumbo frames of most networks, with IPv4's
/// header and TCP's.
const MSS_MIN: u32 = 536;
const MSS_MAX: u32 = 8960;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct File {
    relay: RawRelay,
    wire: RawWire,
    listener: Option<Vec<listener::Raw>>,
    upstream: BTreeMap<Spanned<String>, upstream::Raw>,
    timeouts: RawTimeouts,
    limits: RawLimits,
    allow: RawAllow,
    proxy_protocol: RawProxyProtocol,
    tls: RawTls,
    dns: RawDns,
    admin: RawAdmin,
    privacy: RawPrivacy,
    security: RawSecurity,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawRelay {
    path: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawWire {
    auto: Option<bool>,
    ports: Option<Text>,
    max_flows: Option<Spanned<u32>>,
    mss: Option<Spanned<u32>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawTimeouts {
    connect: Option<Text>,
    inspect: Option<Text>,
    handshake: Option<Text>,
    idle: Option<Text>,
    half_close: Option<Text>,
    vanished: Option<Text>,
    lame_duck: Option<Text>,
    drain: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    connections: Option<Spanned<u32>>,
    per_source: Option<Spanned<u32>>,
    per_source_rate: Option<Spanned<u32>>,
    exempt: Option<Texts>,
    pending: Option<Spanned<u32>>,
    kernel_bytes: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawAllow {
    sni: Option<Texts>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawProxyProtocol {
    trusted: Option<Texts>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawTls {
    certificate: Option<Text>,
    key: Option<Text>,
    names: Option<Texts>,
    state_dir: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawDns {
    servers: Option<Texts>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawAdmin {
    bind: Option<Texts>,
    hosts: Option<Texts>,
    ready_after: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawPrivacy {
    client_addresses: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawSecurity {
    allow_private_upstreams: bool,
    user: Option<Text>,
}

/// Reads and validates the text of a file.
pub(super) fn parse(file: &str, text: &str) -> Result<Config, ConfigError> {
    let source = Source { file, text };
    let tree = DeTable::parse(text).or_else(|error| source.syntax(&error))?;
    schema::check(&tree).or_else(|fault| source.fault(fault))?;
    // The schema lets nothing through that this refuses.
    let raw = File::deserialize(Deserializer::from(tree)).or_else(|error| source.syntax(&error))?;
    raw.validate(&source)
}

impl File {
    fn validate(&self, source: &Source<'_>) -> Result<Config, ConfigError> {
        let mut config = defaults::config();
        if let Some(path) = &self.relay.path {
            config.path = source.keyword("relay.path", path, schema::PATH)?;
        }
        if let Some(addresses) = &self.privacy.client_addresses {
            let key = "privacy.client_addresses";
            config.client_addresses = source.keyword(key, addresses, schema::CLIENT_ADDRESSES)?;
        }
        config.allow_private_upstreams = self.security.allow_private_upstreams;
        if let Some(user) = &self.security.user {
            config.user = Some(source.read("security.user", user, schema::USER, source::name)?);
        }
        self.wire.validate(source, &mut config.wire)?;
        self.timeouts.validate(source, &mut config.timeouts)?;
        self.limits.validate(source, &mut config.limits)?;
        self.tls.validate(source, &mut config.tls)?;
        if let Some(names) = &self.allow.sni {
            let parse = |text: &str| text.parse().map_err(|()| "is no name of a host");
            config.allowed_names = AllowList::new(source.list("allow.sni", names, schema::PATTERN, parse)?);
        }
        if let Some(trusted) = &self.proxy_protocol.trusted {
            config.trusted = source.ranges("proxy_protocol.trusted", trusted)?;
        }
        if let Some(servers) = &self.dns.servers {
            let parse = |text: &str| match (text.parse::<SocketAddr>(), text.parse::<IpAddr>()) {
                (Ok(address), _) => Ok(address),
                (Err(_), Ok(ip)) => Ok(SocketAddr::new(ip, 53)),
                (Err(_), Err(_)) => Err("is no address"),
            };
            config.dns_servers = source.list("dns.servers", servers, schema::SERVER, parse)?;
        }
        for (name, raw) in &self.upstream {
            let known = config.upstreams.iter().position(|known| known.name == *name.get_ref());
            let default = known.map(|index| &config.upstreams[index]);
            let upstream = raw.validate(source, name, default, config.allow_private_upstreams)?;
            match known {
                Some(index) => config.upstreams[index] = upstream,
                None => config.upstreams.push(upstream),
            }
        }
        if self.listener.is_some() {
            config.listeners = Vec::new();
        }
        if let Some(bind) = &self.admin.bind {
            let taken: Vec<_> =
                config.listeners.iter().flat_map(|listener| &listener.bind).copied().collect();
            config.admin = source.bind("admin.bind", bind, &taken)?;
        }
        if let Some(hosts) = &self.admin.hosts {
            let parse = |text: &str| match is_host_name(text) {
                true => Ok(text.trim_end_matches('.').to_ascii_lowercase()),
                false => Err("is no name of a host"),
            };
            config.admin_hosts = source.list("admin.hosts", hosts, schema::HOST_NAME, parse)?;
        }
        if let Some(ready_after) = &self.admin.ready_after {
            config.ready_after = source.pause("admin.ready_after", ready_after)?;
        }
        if let Some(listeners) = &self.listener {
            for raw in listeners {
                let listener = raw.validate(source, &config)?;
                config.listeners.push(listener);
            }
            if config.listeners.is_empty() {
                return source.wrong(&(0..0), "listener", "there is none", "add a [[listener]]");
            }
        }
        self.check_trusted(source, &config)?;
        self.check_routes(source, &config)?;
        self.check_loops(source, &config)?;
        self.check_wire_ports(source, &config)?;
        Ok(config)
    }

    /// A listener that nobody may use is a mistake.
    fn check_trusted(&self, source: &Source<'_>, config: &Config) -> Result<(), ConfigError> {
        let closed = config.listeners.iter().find(|listener| listener.accept_proxy_protocol);
        let (Some(trusted), true, Some(listener)) =
            (&self.proxy_protocol.trusted, config.trusted.is_empty(), closed)
        else {
            return Ok(());
        };
        let problem = format!("it is empty, and listener \"{}\" accepts PROXY headers", listener.name);
        let remedy = "name the addresses of your load balancer, or set accept_proxy_protocol = false there";
        source.wrong(&trusted.span(), "proxy_protocol.trusted", problem, remedy)
    }

    /// Chat has no SNI that could choose its server.
    fn check_routes(&self, source: &Source<'_>, config: &Config) -> Result<(), ConfigError> {
        for listener in &config.listeners {
            let upstream = match listener.mode {
                Mode::Chat { upstream, .. } | Mode::ChatTls { upstream, .. } => upstream,
                Mode::Auto { chat, .. } => chat,
                Mode::Media { .. } => continue,
            };
            let Upstream { name, route: Route::Sni, .. } = config.upstream(upstream) else { continue };
            let raw = self.upstream.iter().find(|(raw, _)| raw.get_ref() == name);
            let span = raw.map_or(0..0, |(_, raw)| raw.route_span());
            let problem = format!("listener \"{}\" sends chat there, which has no SNI", listener.name);
            let remedy = "write route = \"fixed\", or give the listener another upstream for chat";
            return source.wrong(&span, &format!("upstream.{name}.route"), problem, remedy);
        }
        Ok(())
    }

    /// Refuses destinations that are setu itself, as far as addresses tell; names and addresses of this machine are
    /// judged when they are dialed.
    fn check_loops(&self, source: &Source<'_>, config: &Config) -> Result<(), ConfigError> {
        let own = |to: SocketAddr| {
            let bound = config.listeners.iter().flat_map(|listener| &listener.bind).chain(&config.admin);
            bound.into_iter().find(|bound| reaches(to, **bound))
        };
        let remedy = "name the server that setu is to reach";
        for (name, raw) in &self.upstream {
            for text in raw.endpoint_texts() {
                if let Ok(Endpoint { host: Host::Ip(ip), port }) = text.get_ref().parse()
                    && let Some(bound) = own(SocketAddr::new(ip, port))
                {
                    let key = format!("upstream.{}.endpoints", name.get_ref());
                    let problem = format!("\"{}\" is setu itself, which binds {bound}", text.get_ref());
                    return source.wrong(&text.span(), &key, problem, remedy);
                }
            }
        }
        for (raw, listener) in self.listener.iter().flatten().zip(&config.listeners) {
            if let Mode::Auto { fallback: Some(fallback), .. } = listener.mode
                && let Some(bound) = own(fallback)
            {
                let problem = format!("\"{fallback}\" is setu itself, which binds {bound}");
                return source.wrong(&raw.fallback_span(), "listener.fallback", problem, remedy);
            }
        }
        Ok(())
    }

    /// An upstream that is dialed from the port of a listener would take it from that.
    fn check_wire_ports(&self, source: &Source<'_>, config: &Config) -> Result<(), ConfigError> {
        let wanted = config.path == PathChoice::Wire;
        let Some((whose, bind)) = config.wire_conflict().filter(|_| wanted) else { return Ok(()) };
        let (ports, span) = (&config.wire.ports, self.wire.ports.as_ref().or(self.relay.path.as_ref()));
        let problem = format!("{}-{} has the port of {whose}, {bind}", ports.start(), ports.end());
        let remedy = "write other ports, or have setu listen at another";
        source.wrong(&span.map_or(0..0, Spanned::span), "wire.ports", problem, remedy)
    }
}

impl RawWire {
    fn validate(&self, source: &Source<'_>, wire: &mut Wire) -> Result<(), ConfigError> {
        wire.auto = self.auto.unwrap_or(wire.auto);
        if let Some(text) = &self.ports {
            wire.ports = source.read("wire.ports", text, schema::PORTS, ports)?;
        }
        let between = |key: &str, raw: &Spanned<u32>, least: u32, most: u32, remedy: &str| {
            let number = *raw.get_ref();
            if (least..=most).contains(&number) {
                return Ok(number);
            }
            source.wrong(&raw.span(), key, format!("{number} is not between {least} and {most}"), remedy)
        };
        if let Some(raw) = &self.max_flows {
            let flows = between("wire.max_flows", raw, 1, MAX_FLOWS, schema::MAX_FLOWS)?;
            wire.max_flows = NonZero::new(flows).unwrap_or(wire.max_flows);
        }
        if let Some(raw) = &self.mss {
            let mss = between("wire.mss", raw, MSS_MIN, MSS_MAX, schema::MSS)?;
            wire.mss = u16::try_from(mss).unwrap_or(wire.mss);
        }
        Ok(())
    }
}

impl RawTimeouts {
    fn validate(&self, source: &Source<'_>, timeouts: &mut Timeouts) -> Result<(), ConfigError> {
        for (key, raw, timeout) in [
            ("timeouts.connect", &self.connect, &mut timeouts.connect),
            ("timeouts.inspect", &self.inspect, &mut timeouts.inspect),
            ("timeouts.handshake", &self.handshake, &mut timeouts.handshake),
            ("timeouts.idle", &self.idle, &mut timeouts.idle),
            ("timeouts.half_close", &self.half_close, &mut timeouts.half_close),
            ("timeouts.vanished", &self.vanished, &mut timeouts.vanished),
            ("timeouts.drain", &self.drain, &mut timeouts.drain),
        ] {
            if let Some(raw) = raw {
                *timeout = source.duration(key, raw)?;
            }
        }
        if let Some(raw) = &self.lame_duck {
            timeouts.lame_duck = source.pause("timeouts.lame_duck", raw)?;
        }
        Ok(())
    }
}

impl RawLimits {
    fn validate(&self, source: &Source<'_>, limits: &mut Limits) -> Result<(), ConfigError> {
        // Of those without a limit by default, 0 is none at all.
        for (key, raw, limit, remedy) in [
            ("limits.connections", &self.connections, &mut limits.connections, schema::POSITIVE),
            ("limits.pending", &self.pending, &mut limits.pending, schema::POSITIVE),
            ("limits.per_source", &self.per_source, &mut limits.per_source, schema::LIMIT),
            ("limits.per_source_rate", &self.per_source_rate, &mut limits.per_source_rate, schema::LIMIT),
        ] {
            let Some(raw) = raw else { continue };
            *limit = NonZero::new(*raw.get_ref());
            if limit.is_none() && remedy == schema::POSITIVE {
                return source.wrong(&raw.span(), key, "0 lets nobody in", remedy);
            }
        }
        if let Some(exempt) = &self.exempt {
            limits.exempt = source.ranges("limits.exempt", exempt)?;
        }
        if let Some(bytes) = &self.kernel_bytes {
            let bytes = source.read("limits.kernel_bytes", bytes, schema::BYTES, size)?;
            limits.kernel_bytes = Some(bytes);
        }
        Ok(())
    }
}

impl RawTls {
    fn validate(&self, source: &Source<'_>, tls: &mut Tls) -> Result<(), ConfigError> {
        // Whoever reads this file, from wherever, is to have the same configuration.
        let file = path::absolute(source.file).unwrap_or_else(|_| source.file.into());
        let folder = file.parent().unwrap_or(Path::new(""));
        tls.files = match (&self.certificate, &self.key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(CertificateFiles {
                certificate: folder.join(certificate.get_ref()),
                key: folder.join(key.get_ref()),
            }),
            (Some(lonely), None) => {
                let remedy = "name the file of the private key";
                return source.wrong(&lonely.span(), "tls.key", "there is a certificate and no key", remedy);
            }
            (None, Some(lonely)) => {
                let remedy = "name the file of the certificate";
                let problem = "there is a key and no certificate";
                return source.wrong(&lonely.span(), "tls.certificate", problem, remedy);
            }
        };
        if let Some(names) = &self.names {
            tls.names = source.list("tls.names", names, schema::TLS_NAME, str::parse)?;
        }
        if let Some(state_dir) = &self.state_dir {
            tls.state_dir = folder.join(state_dir.get_ref());
        }
        Ok(())
    }
}

/// Ports, as `10000-31999`. Those below 1024 setu may not bind once it has given up its rights.
fn ports(text: &str) -> Result<RangeInclusive<u16>, &'static str> {
    let (first, last) = text.split_once('-').ok_or("is no range of ports")?;
    let port =
        |text: &str| text.trim().parse::<u16>().map_err(|_| "is no range of ports between 1024 and 65535");
    let range = port(first)?..=port(last)?;
    match () {
        () if *range.start() < 1024 => Err("begins below 1024"),
        () if range.is_empty() => Err("has no port"),
        () => Ok(range),
    }
}

/// Bytes, as `1024` or `256MiB`.
fn size(text: &str) -> Result<NonZero<u64>, &'static str> {
    let (number, unit) = text.split_at(text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len()));
    let shift = match unit.trim_start() {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err("has no unit that is known here"),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    bytes.and_then(NonZero::new).ok_or("is no size")
}

/// Whether a connection to `to` would come in on `bound`. To the unspecified address means to loopback
/// (net/ipv4/route.c, `ip_route_output_key_hash_rcu`).
fn reaches(to: SocketAddr, bound: SocketAddr) -> bool {
    let (ip, at) = (to.ip().to_canonical(), bound.ip().to_canonical());
    let local = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
    to.port() == bound.port()
        && ip.is_ipv4() == at.is_ipv4()
        && (ip == at || (at.is_unspecified() && local(ip)) || (ip.is_unspecified() && local(at)))
}

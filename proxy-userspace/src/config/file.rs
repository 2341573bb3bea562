//! The file as written: raw types, the only ones that are deserialised, and their way to validated ones.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::Range,
    str::FromStr as _,
    time::Duration,
};

use serde::Deserialize;
use toml::Spanned;

use super::{
    Config, Endpoint, Host, Listener, Mode, PathChoice, Timeouts, Upstream, UpstreamId, defaults,
    error::{ConfigError, Place},
};
use crate::addr::is_public;

/// The longest timeout: a day. A longer one is a slip of the unit.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct File {
    relay: RawRelay,
    listener: Option<Vec<RawListener>>,
    upstream: BTreeMap<String, RawUpstream>,
    dns: RawDns,
    timeouts: RawTimeouts,
    security: RawSecurity,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawRelay {
    path: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawListener {
    name: Spanned<String>,
    bind: Spanned<Vec<Spanned<String>>>,
    mode: Spanned<String>,
    upstream: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUpstream {
    endpoints: Spanned<Vec<Spanned<String>>>,
    #[serde(default)]
    sources: Vec<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawDns {
    servers: Vec<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawTimeouts {
    connect: Option<Spanned<String>>,
    idle: Option<Spanned<String>>,
    half_close: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawSecurity {
    allow_private_upstreams: bool,
}

/// Reads and validates the text of a file.
pub(super) fn parse(file: &str, text: &str) -> Result<Config, ConfigError> {
    let source = Source { file, text };
    let raw: File = toml::from_str(text).map_err(|error| ConfigError::Syntax {
        place: source.place(&error.span().unwrap_or(0..0)),
        message: error.message().replace('\n', "; "),
    })?;
    source.validate(raw)
}

struct Source<'a> {
    file: &'a str,
    text: &'a str,
}

impl Source<'_> {
    fn place(&self, span: &Range<usize>) -> Place {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        Place { file: self.file.into(), line: before.matches('\n').count() + 1 }
    }

    fn wrong<T>(
        &self,
        span: &Range<usize>,
        key: &str,
        problem: String,
        remedy: &str,
    ) -> Result<T, ConfigError> {
        Err(ConfigError::Value { place: self.place(span), key: key.into(), problem, remedy: remedy.into() })
    }

    fn validate(&self, raw: File) -> Result<Config, ConfigError> {
        let mut config = defaults();
        if let Some(path) = raw.relay.path {
            config.path = PathChoice::from_str(path.get_ref()).or_else(|()| {
                let problem = format!("\"{}\" is no path", path.get_ref());
                self.wrong(
                    &path.span(),
                    "relay.path",
                    problem,
                    "write \"auto\", \"sockmap\" or \"userspace\"",
                )
            })?;
        }
        config.dns_servers =
            raw.dns.servers.iter().map(|server| self.dns_server(server)).collect::<Result<_, _>>()?;
        config.allow_private_upstreams = raw.security.allow_private_upstreams;
        let timeouts = [
            ("timeouts.connect", raw.timeouts.connect, &mut config.timeouts.connect),
            ("timeouts.idle", raw.timeouts.idle, &mut config.timeouts.idle),
            ("timeouts.half_close", raw.timeouts.half_close, &mut config.timeouts.half_close),
        ];
        for (key, raw, timeout) in timeouts {
            if let Some(raw) = raw {
                *timeout = self.duration(key, &raw)?;
            }
        }
        for (name, raw) in &raw.upstream {
            let upstream = self.upstream(name, raw, config.allow_private_upstreams)?;
            match config.upstreams.iter_mut().find(|known| known.name == *name) {
                Some(known) => *known = upstream,
                None => config.upstreams.push(upstream),
            }
        }
        if let Some(listeners) = raw.listener {
            config.listeners = Vec::new();
            for raw in &listeners {
                let listener = self.listener(raw, &config)?;
                config.listeners.push(listener);
            }
            if config.listeners.is_empty() {
                return self.wrong(&(0..0), "listener", "there is none".into(), "add a [[listener]]");
            }
        }
        Ok(config)
    }

    fn duration(&self, key: &str, raw: &Spanned<String>) -> Result<Duration, ConfigError> {
        let remedy = "write a time such as \"500ms\", \"5s\" or \"3m\"";
        match humantime::parse_duration(raw.get_ref()) {
            Ok(time) if time.is_zero() => self.wrong(&raw.span(), key, "it is 0".into(), remedy),
            Ok(time) if time > LONGEST => {
                self.wrong(&raw.span(), key, format!("\"{}\" is more than a day", raw.get_ref()), remedy)
            }
            Ok(time) => Ok(time),
            Err(error) => self.wrong(&raw.span(), key, format!("\"{}\": {error}", raw.get_ref()), remedy),
        }
    }

    fn upstream(&self, name: &str, raw: &RawUpstream, private: bool) -> Result<Upstream, ConfigError> {
        let key = format!("upstream.{name}.endpoints");
        let mut endpoints = Vec::new();
        for text in raw.endpoints.get_ref() {
            let endpoint = match Endpoint::parse(text.get_ref()) {
                Ok(endpoint) => endpoint,
                Err(problem) => {
                    let problem = format!("\"{}\": {problem}", text.get_ref());
                    let remedy = "write host:port, an IPv6 address in brackets";
                    return self.wrong(&text.span(), &key, problem, remedy);
                }
            };
            if let Host::Ip(ip) = endpoint.host
                && !private
                && !is_public(ip)
            {
                let problem = format!("{ip} is no public address");
                let remedy = "name a public one, or set security.allow_private_upstreams = true";
                return self.wrong(&text.span(), &key, problem, remedy);
            }
            endpoints.push(endpoint);
        }
        if endpoints.is_empty() {
            return self.wrong(
                &raw.endpoints.span(),
                &key,
                "there is none".into(),
                "name at least one host:port",
            );
        }
        let source = |text: &Spanned<String>| {
            text.get_ref().parse().or_else(|_| {
                let problem = format!("\"{}\" is no address", text.get_ref());
                let remedy = "write an IP address of this machine";
                self.wrong(&text.span(), &format!("upstream.{name}.sources"), problem, remedy)
            })
        };
        let sources = raw.sources.iter().map(source).collect::<Result<_, _>>()?;
        Ok(Upstream { name: name.into(), endpoints, sources })
    }

    fn dns_server(&self, text: &Spanned<String>) -> Result<SocketAddr, ConfigError> {
        let (address, ip) = (text.get_ref().parse(), text.get_ref().parse::<IpAddr>());
        address.or_else(|_| ip.map(|ip| SocketAddr::new(ip, 53))).or_else(|_| {
            let problem = format!("\"{}\" is no address", text.get_ref());
            self.wrong(&text.span(), "dns.servers", problem, "write the resolver's IP, or IP:port")
        })
    }

    fn listener(&self, raw: &RawListener, config: &Config) -> Result<Listener, ConfigError> {
        let name = raw.name.get_ref();
        if config.listeners.iter().any(|other| other.name == *name) {
            let problem = format!("\"{name}\" is the name of another listener");
            return self.wrong(&raw.name.span(), "listener.name", problem, "give each its own name");
        }
        let Ok(mode) = Mode::from_str(raw.mode.get_ref()) else {
            let problem = format!("\"{}\" is no mode", raw.mode.get_ref());
            return self.wrong(&raw.mode.span(), "listener.mode", problem, "write \"chat\" or \"media\"");
        };
        let known = || {
            let names: Vec<_> = config.upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
            format!("name one of: {}, or add [upstream.NAME]", names.join(", "))
        };
        let Some(wanted) = &raw.upstream else {
            let problem = format!("listener \"{name}\" has none");
            return self.wrong(&raw.name.span(), "listener.upstream", problem, &known());
        };
        let upstream = config.upstreams.iter().position(|upstream| upstream.name == *wanted.get_ref());
        let Some(upstream) = upstream.map(UpstreamId) else {
            let problem = format!("there is no upstream \"{}\"", wanted.get_ref());
            return self.wrong(&wanted.span(), "listener.upstream", problem, &known());
        };
        let mut bind: Vec<SocketAddr> = Vec::new();
        for text in raw.bind.get_ref() {
            let Ok(address) = text.get_ref().parse() else {
                let problem = format!("\"{}\" is no address", text.get_ref());
                let remedy = "write IP:port, for example \"0.0.0.0:5222\" or \"[::]:5222\"";
                return self.wrong(&text.span(), "listener.bind", problem, remedy);
            };
            let taken = config.listeners.iter().flat_map(|other| &other.bind).chain(&bind);
            if let Some(other) = taken.into_iter().find(|other| overlap(**other, address)) {
                let problem = format!("{address} is bound already, by {other}");
                return self.wrong(&text.span(), "listener.bind", problem, "give each address another port");
            }
            bind.push(address);
        }
        if bind.is_empty() {
            return self.wrong(
                &raw.bind.span(),
                "listener.bind",
                "there is none".into(),
                "name at least one IP:port",
            );
        }
        Ok(Listener { name: name.clone(), bind, mode, upstream })
    }
}

/// Whether both cannot be bound together. Port 0 is a new one each time.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port()
        && one.port() != 0
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

/// The defaults' timeouts, as the reference has them, but for half-close: its 1 s cuts slow phones off.
pub(super) const TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(5),
    idle: Duration::from_secs(200),
    half_close: Duration::from_secs(10),
};

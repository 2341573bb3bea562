//! What setu is to do: a file, or the defaults, as validated types. Later code holds nothing that "must be there".

mod error;
mod file;

use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    str::FromStr,
    time::Duration,
};

pub use error::{ConfigError, Place};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How bytes are to move.
    pub path: PathChoice,
    /// Never empty; names are unique.
    pub listeners: Vec<Listener>,
    /// Names are unique.
    pub upstreams: Vec<Upstream>,
    /// See [`Timeouts`].
    pub timeouts: Timeouts,
    /// Whether loopback, private and link-local upstreams may be dialed.
    pub allow_private_upstreams: bool,
    /// Resolvers to ask; none for the system's.
    pub dns_servers: Vec<SocketAddr>,
}

/// How bytes are to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PathChoice {
    /// In the kernel where that is possible and safe, else in userspace.
    Auto,
    /// In the kernel, or do not start.
    Sockmap,
    /// In userspace.
    Userspace,
}

/// What a listener expects of its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The chat protocol.
    Chat,
    /// TLS that is passed through.
    Media,
}

/// Addresses that clients connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its name in logs.
    pub name: String,
    /// Never empty.
    pub bind: Vec<SocketAddr>,
    /// What to expect.
    pub mode: Mode,
    /// Where its clients go.
    pub upstream: UpstreamId,
}

/// Names an upstream of the same [`Config`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpstreamId(pub(crate) usize);

/// Servers that are one to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Its name in the configuration.
    pub name: String,
    /// Never empty.
    pub endpoints: Vec<Endpoint>,
    /// Local addresses to connect from, in turn; none for the kernel's choice.
    pub sources: Vec<IpAddr>,
}

/// A server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name or address.
    pub host: Host,
    /// Never 0.
    pub port: u16,
}

/// A server's name or address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A name to resolve.
    Name(String),
}

/// How long to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// For the upstream, over all its addresses.
    pub connect: Duration,
    /// While nothing moves.
    pub idle: Duration,
    /// While nothing moves and one side has finished.
    pub half_close: Duration,
}

impl Config {
    /// Reads a file, or takes the defaults.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = file else { return Ok(defaults()) };
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
            place: Place { file: name.clone(), line: 0 },
            error: error.to_string(),
        })?;
        Self::parse(&name, &text)
    }

    /// Reads the text of a file that is called `name` in errors.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        file::parse(name, text)
    }

    /// The upstream of this name.
    #[must_use]
    pub fn upstream(&self, id: UpstreamId) -> &Upstream {
        &self.upstreams[id.0]
    }

    /// Whether a listener leads to this upstream.
    #[must_use]
    pub fn is_used(&self, id: UpstreamId) -> bool {
        self.listeners.iter().any(|listener| listener.upstream == id)
    }

    /// Moves every port up, so that no privilege is needed. Port 0 stays.
    ///
    /// # Errors
    /// When a port would be above 65535.
    pub fn offset_ports(&mut self, offset: u16) -> Result<(), ConfigError> {
        for address in self.listeners.iter_mut().flat_map(|listener| &mut listener.bind) {
            if address.port() == 0 {
                continue;
            }
            let port = address.port().checked_add(offset).ok_or_else(|| ConfigError::Value {
                place: Place { file: "--port-offset".into(), line: 0 },
                key: address.to_string(),
                problem: format!("its port and {offset} are more than 65535 together"),
                remedy: "choose a smaller offset".into(),
            })?;
            address.set_port(port);
        }
        Ok(())
    }
}

/// The reference's ports and upstreams.
fn defaults() -> Config {
    let upstreams = [
        ("chat", "g.whatsapp.net", 5222),
        ("chat-http", "g.whatsapp.net", 80),
        ("media", "whatsapp.net", 443),
    ];
    let listeners = [
        ("chat", 5222, Mode::Chat, 0),
        ("chat-http", 80, Mode::Chat, 1),
        ("media", 587, Mode::Media, 2),
        ("media-alt", 7777, Mode::Media, 2),
    ];
    Config {
        path: PathChoice::Auto,
        listeners: listeners
            .map(|(name, port, mode, upstream)| Listener {
                name: name.into(),
                bind: vec![(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()],
                mode,
                upstream: UpstreamId(upstream),
            })
            .into(),
        upstreams: upstreams
            .map(|(name, host, port)| Upstream {
                name: name.into(),
                endpoints: vec![Endpoint { host: Host::Name(host.into()), port }],
                sources: Vec::new(),
            })
            .into(),
        timeouts: file::TIMEOUTS,
        allow_private_upstreams: false,
        dns_servers: Vec::new(),
    }
}

impl Endpoint {
    /// Reads `host:port`.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (host, port) = text.rsplit_once(':').ok_or("the port is missing")?;
        let port =
            port.parse().ok().filter(|port| *port != 0).ok_or("the port is not between 1 and 65535")?;
        let host = if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Host::Ip(IpAddr::V6(inner.parse().map_err(|_| "the address in brackets is not IPv6")?))
        } else if let Ok(ip) = host.parse::<Ipv4Addr>() {
            Host::Ip(ip.into())
        } else {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            let label = |label: &str| (1..64).contains(&label.len()) && label.bytes().all(known);
            let name = host.strip_suffix('.').unwrap_or(host);
            // A name whose last part is a number is an address with a slip (RFC 3696, section 2).
            let numeric =
                name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
            let valid = name.len() < 254 && name.split('.').all(label) && !numeric;
            Host::Name(valid.then(|| host.into()).ok_or("the host is neither a name nor an address")?)
        };
        Ok(Self { host, port })
    }
}

impl FromStr for PathChoice {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        clap::ValueEnum::from_str(text, false).map_err(drop)
    }
}

impl fmt::Display for PathChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Auto => "auto",
            Self::Sockmap => "sockmap",
            Self::Userspace => "userspace",
        })
    }
}

impl FromStr for Mode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "chat" => Ok(Self::Chat),
            "media" => Ok(Self::Media),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Chat => "chat",
            Self::Media => "media",
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(formatter),
            Host::Name(name) => write!(formatter, "{name}:{}", self.port),
        }
    }
}

/// The configuration as a file that reads back to the same.
impl fmt::Display for Config {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list(items: impl Iterator<Item = impl fmt::Display>) -> String {
            items.map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(", ")
        }
        writeln!(formatter, "[relay]\npath = \"{}\"", self.path)?;
        for listener in &self.listeners {
            writeln!(formatter, "\n[[listener]]\nname = {:?}", listener.name)?;
            writeln!(formatter, "bind = [{}]\nmode = \"{}\"", list(listener.bind.iter()), listener.mode)?;
            writeln!(formatter, "upstream = {:?}", self.upstream(listener.upstream).name)?;
        }
        for upstream in &self.upstreams {
            let endpoints = list(upstream.endpoints.iter());
            writeln!(formatter, "\n[upstream.{:?}]\nendpoints = [{endpoints}]", upstream.name)?;
            writeln!(formatter, "sources = [{}]", list(upstream.sources.iter()))?;
        }
        writeln!(formatter, "\n[dns]\nservers = [{}]", list(self.dns_servers.iter()))?;
        let time = |time| humantime::format_duration(time);
        writeln!(formatter, "\n[timeouts]\nconnect = \"{}\"", time(self.timeouts.connect))?;
        writeln!(
            formatter,
            "idle = \"{}\"\nhalf_close = \"{}\"",
            time(self.timeouts.idle),
            time(self.timeouts.half_close)
        )?;
        writeln!(formatter, "\n[security]\nallow_private_upstreams = {}", self.allow_private_upstreams)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each invalid file begins with `# expect: ` and the error without the file's name.
    #[test]
    fn invalid_files_name_line_key_and_fix() {
        let mut count = 0;
        for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/configs/invalid")).unwrap() {
            let path = entry.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            let expected = text.lines().next().unwrap().strip_prefix("# expect: ").unwrap();
            let error = Config::parse("f", &text).expect_err(&path.display().to_string()).to_string();
            assert_eq!(error, format!("f:{expected}"), "{}", path.display());
            count += 1;
        }
        assert!(count >= 15, "{count} files");
    }

    #[test]
    fn valid_files_print_and_read_back() {
        for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/configs/valid")).unwrap() {
            let path = entry.unwrap().path();
            let config = Config::load(Some(&path)).unwrap();
            assert_eq!(Config::parse("again", &config.to_string()).unwrap(), config, "{}", path.display());
        }
        let defaults = Config::load(None).unwrap();
        assert_eq!(Config::parse("again", &defaults.to_string()).unwrap(), defaults);
    }

    #[test]
    fn ports_move_and_stay_in_range() {
        let mut config = Config::load(None).unwrap();
        config.offset_ports(10_000).unwrap();
        assert_eq!(config.listeners[0].bind[0].port(), 15_222);
        assert!(config.offset_ports(60_000).unwrap_err().to_string().contains("smaller offset"));
    }
}

//! What setu is to do: a file, or the defaults, as validated types. Later code holds nothing that "must be there".

mod defaults;
mod display;
mod endpoint;
mod error;
mod file;
mod keyword;
mod reference;
mod schema;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    num::NonZero,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{addr::Ranges, route::AllowList};
pub use endpoint::{Endpoint, Host};
pub use error::{ConfigError, Place};
use keyword::keywords;
pub use reference::{Entry, Section, reference};

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
    /// See [`Limits`].
    pub limits: Limits,
    /// Names that media clients may ask for.
    pub allowed_names: AllowList,
    /// Who may send PROXY headers. Not empty when a listener accepts them.
    pub trusted: Ranges,
    /// See [`Tls`].
    pub tls: Tls,
    /// Resolvers; none means those of the system.
    pub dns_servers: Vec<SocketAddr>,
    /// Where the status page and metrics are served; nowhere when empty.
    pub admin: Vec<SocketAddr>,
    /// What logs may tell of clients.
    pub client_addresses: ClientAddresses,
    /// Whether loopback, private and link-local upstreams may be dialed.
    pub allow_private_upstreams: bool,
    /// Whom setu becomes when it was started as root; `None` is `setu` if there is one, else nobody.
    pub user: Option<String>,
}

keywords! {
    /// How bytes are to move.
    #[derive(clap::ValueEnum)]
    pub enum PathChoice {
        /// Each connection where it is better off: in the kernel while it is quiet, if that is possible and safe, else in
        /// userspace.
        Auto = "auto",
        /// In the kernel, or do not start.
        Sockmap = "sockmap",
        /// In userspace.
        Userspace = "userspace",
    }
}

keywords! {
    /// Whether an upstream is told the client's address.
    pub enum SendProxyProtocol {
        /// No.
        Off = "off",
        /// By a header of the PROXY protocol's version 1, a line of text.
        V1 = "v1",
        /// By one of version 2, which is binary.
        V2 = "v2",
    }
}

keywords! {
    /// How an upstream's server is chosen.
    pub enum Route {
        /// One of its endpoints.
        Fixed = "fixed",
        /// The host that the client's SNI names, on port 443; one of the endpoints when it names none.
        Sni = "sni",
    }
}

keywords! {
    /// What logs may tell of clients' addresses.
    pub enum ClientAddresses {
        /// Nothing.
        Never = "never",
        /// The network: 24 bits of an IPv4 address, 48 of an IPv6 one.
        Truncated = "truncated",
        /// All.
        Full = "full",
    }
}

/// What a listener expects of its clients, and where they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The chat protocol.
    Chat {
        /// Where it goes.
        upstream: UpstreamId,
        /// Forward nothing but the chat protocol.
        gate: bool,
    },
    /// The chat protocol inside TLS, which ends here.
    ChatTls {
        /// Where it goes.
        upstream: UpstreamId,
        /// Forward nothing but the chat protocol.
        gate: bool,
    },
    /// TLS that is passed through.
    Media {
        /// Where it goes.
        upstream: UpstreamId,
    },
    /// All of these on one port, told apart by their first bytes.
    Auto {
        /// Where the chat protocol goes, in the clear or inside TLS.
        chat: UpstreamId,
        /// Where TLS for an allowed name goes.
        media: UpstreamId,
        /// The operator's web server, for what is neither. Only where there is a gate.
        fallback: Option<SocketAddr>,
        /// Forward nothing but the chat protocol to `chat`.
        gate: bool,
    },
}

impl Mode {
    /// Where clients may go.
    #[must_use]
    pub fn upstreams(self) -> [Option<UpstreamId>; 2] {
        match self {
            Self::Chat { upstream, .. } | Self::ChatTls { upstream, .. } | Self::Media { upstream } => {
                [Some(upstream), None]
            }
            Self::Auto { chat, media, .. } => [Some(chat), Some(media)],
        }
    }
}

/// Addresses that clients connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Its name in logs: letters, digits, `-` and `_`.
    pub name: String,
    /// Never empty.
    pub bind: Vec<SocketAddr>,
    /// What to expect.
    pub mode: Mode,
    /// Whether each connection begins with a PROXY header.
    pub accept_proxy_protocol: bool,
}

/// Names an upstream of the same [`Config`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpstreamId(pub(crate) usize);

/// Servers that are one to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Its name in the configuration: letters, digits, `-` and `_`.
    pub name: String,
    /// Never empty.
    pub endpoints: Vec<Endpoint>,
    /// Whether it is told the client's address. Off where the route is by SNI.
    pub send_proxy_protocol: SendProxyProtocol,
    /// How one is chosen. By SNI only where no chat goes.
    pub route: Route,
    /// Addresses of this machine to dial from, in turn; none means that the system chooses.
    pub sources: Vec<IpAddr>,
}

/// How long to wait. None is zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// For the upstream, over all its addresses.
    pub connect: Duration,
    /// For a PROXY header, a ClientHello, or the first bytes of chat; each.
    pub inspect: Duration,
    /// For a TLS handshake.
    pub handshake: Duration,
    /// While nothing moves.
    pub idle: Duration,
    /// While nothing moves and one side has finished.
    pub half_close: Duration,
    /// While a peer acknowledges neither bytes nor questions for a sign of life, or has no room for what waits for it.
    pub vanished: Duration,
    /// For connections to end by themselves when setu stops.
    pub drain: Duration,
}

/// How many connections. A source is an IPv4 address, or the /64 of an IPv6 one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// At once; `None` is what the limit of open files and the memory allow.
    pub connections: Option<NonZero<u32>>,
    /// At once from one source; `None` is no limit.
    pub per_source: Option<NonZero<u32>>,
    /// New ones each second from one source, after a burst of ten times as many; `None` is no limit.
    pub per_source_rate: Option<NonZero<u32>>,
    /// Sources to which both do not apply.
    pub exempt: Ranges,
    /// At once in inspection or handshake; `None` is a quarter of all, and at least 64.
    pub pending: Option<NonZero<u32>>,
    /// Bytes that all flows together may have on their way in the kernel; `None` is a part of the memory.
    pub kernel_bytes: Option<NonZero<u64>>,
}

/// The certificate of listeners where TLS ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The operator's; `None` is one that setu makes and keeps.
    pub files: Option<CertificateFiles>,
    /// Names in the one that setu makes.
    pub names: Vec<Host>,
    /// Where setu keeps it.
    pub state_dir: PathBuf,
}

/// A certificate in PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, the server's own first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Config {
    /// Reads a file, or takes the defaults.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = file else { return Ok(defaults::config()) };
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
            place: Place { file: name.clone(), line: 0 },
            error: error.to_string(),
        })?;
        Self::parse(&name, &text)
    }

    /// Reads the text of a file that is called `name` in errors; paths in it are relative to that.
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
        self.listeners.iter().any(|listener| listener.mode.upstreams().contains(&Some(id)))
    }

    /// Whether a listener leads to the upstream of this name.
    #[must_use]
    pub fn leads_to(&self, upstream: &str) -> bool {
        let of_name = |(_, other): &(usize, &Upstream)| other.name == upstream;
        self.upstreams.iter().enumerate().find(of_name).is_some_and(|(id, _)| self.is_used(UpstreamId(id)))
    }

    /// Keys whose values are others than `before`, and that take a restart.
    pub fn takes_restart(&self, before: &Self) -> impl Iterator<Item = &'static str> {
        let differs = [
            ("relay.path", self.path != before.path),
            ("limits.kernel_bytes", self.limits.kernel_bytes != before.limits.kernel_bytes),
            ("tls.state_dir", self.tls.state_dir != before.tls.state_dir),
            ("admin.bind", self.admin != before.admin),
            ("security.user", self.user != before.user),
        ];
        differs.into_iter().filter_map(|(key, differs)| differs.then_some(key))
    }

    /// Moves every port that setu listens on up, so that no privilege is needed. Port 0 stays.
    ///
    /// # Errors
    /// When a port would be above 65535.
    pub fn offset_ports(&mut self, offset: u16) -> Result<(), ConfigError> {
        let listeners = self.listeners.iter_mut().flat_map(|listener| &mut listener.bind);
        for address in listeners.chain(&mut self.admin) {
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
        assert!(count >= 50, "{count} files");
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
    fn an_upstream_of_the_defaults_keeps_what_a_file_does_not_say() {
        let text = "[upstream.chat]\nendpoints = [\"chat.example:1\"]\n[upstream.media]\nroute = \"sni\"\n\
                    [upstream.own]\nendpoints = [\"own.example:1\"]";
        let config = Config::parse("f", text).unwrap();
        let [chat, _, media, own] = config.upstreams.as_slice() else { panic!("{config}") };
        assert_eq!(chat.endpoints[0].to_string(), "chat.example:1");
        assert_eq!(chat.send_proxy_protocol, SendProxyProtocol::V1);
        assert_eq!(media.endpoints[0].to_string(), "whatsapp.net:443");
        assert_eq!((media.send_proxy_protocol, media.route), (SendProxyProtocol::Off, Route::Sni));
        assert_eq!((own.send_proxy_protocol, own.route), (SendProxyProtocol::Off, Route::Fixed));
    }

    #[test]
    fn files_are_found_beside_the_configuration() {
        let text = "[tls]\ncertificate = \"cert.pem\"\nkey = \"/keys/key.pem\"";
        let tls = Config::parse("/etc/setu/setu.toml", text).unwrap().tls;
        assert_eq!(tls.files.as_ref().unwrap().certificate, Path::new("/etc/setu/cert.pem"));
        assert_eq!(tls.files.unwrap().key, Path::new("/keys/key.pem"));
        assert_eq!(tls.state_dir, Path::new("/var/lib/setu"));
    }

    #[test]
    fn the_defaults_are_the_references_ports() {
        let config = Config::load(None).unwrap();
        let ports = |listener: &Listener| listener.bind.iter().map(SocketAddr::port).collect::<Vec<_>>();
        let listeners: Vec<_> = config
            .listeners
            .iter()
            .map(|listener| {
                let (upstream, tls) = match listener.mode {
                    Mode::Chat { upstream, gate: false } | Mode::Media { upstream } => (upstream, false),
                    Mode::ChatTls { upstream, gate: false } => (upstream, true),
                    other => panic!("{other:?}"),
                };
                let upstream = config.upstream(upstream).endpoints[0].to_string();
                (
                    ports(listener)[..] == [ports(listener)[0]; 2],
                    ports(listener)[0],
                    tls,
                    listener.accept_proxy_protocol,
                    upstream,
                )
            })
            .collect();
        let chat = || "g.whatsapp.net:5222".to_owned();
        let http = || "g.whatsapp.net:80".to_owned();
        let media = || "whatsapp.net:443".to_owned();
        let expected = [
            (true, 443, true, false, chat()),
            (true, 8443, true, true, chat()),
            (true, 5222, false, false, chat()),
            (true, 8222, false, true, chat()),
            (true, 80, false, false, http()),
            (true, 8080, false, true, http()),
            (true, 587, false, false, media()),
            (true, 7777, false, false, media()),
        ];
        assert_eq!(listeners, expected);
    }

    proptest::proptest! {
        /// Whatever a file holds, an error is all that comes of it, on a line that exists.
        #[test]
        fn damaged_files_are_errors(at in 0usize..2000, len in 0usize..40, with in "[ -~\n]{0,8}") {
            let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/configs/valid/every-key.toml");
            let mut text = fs::read_to_string(file).unwrap();
            let start = at.min(text.len());
            text.replace_range(start..(start + len).min(text.len()), &with);
            if let Err(ConfigError::Value { place, key, remedy, .. }) = Config::parse("f", &text) {
                let lines = text.matches('\n').count() + 1;
                proptest::prop_assert!((1..=lines).contains(&place.line) && !remedy.is_empty(), "{place} {key}");
            }
        }
    }

    #[test]
    fn ports_move_and_stay_in_range() {
        let mut config = Config::load(None).unwrap();
        config.offset_ports(10_000).unwrap();
        assert_eq!(config.listeners[0].bind[0].port(), 10_443);
        assert_eq!(config.admin[0].port(), 18_199);
        assert!(config.offset_ports(60_000).unwrap_err().to_string().contains("smaller offset"));
    }
}

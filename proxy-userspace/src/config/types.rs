//! The configuration as validated types. Later code holds nothing that "must be there".

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZero,
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use super::{
    endpoint::{Endpoint, Host},
    keyword::keywords,
    names::AllowList,
    network::Ranges,
};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How bytes are to move.
    pub path: PathChoice,
    /// See [`Wire`].
    pub wire: Wire,
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
    /// Names by which the admin endpoint may be asked, in small letters.
    pub admin_hosts: Vec<String>,
    /// How long after its start setu waits for an answer of WhatsApp's before it says what it knows; zero is not at all.
    pub ready_after: Duration,
    /// What logs may tell of clients.
    pub client_addresses: ClientAddresses,
    /// Whether loopback, private and link-local upstreams may be dialed.
    pub allow_private_upstreams: bool,
    /// Whom setu becomes when it was started as root; `None` is `setu` if there is one, else a number that
    /// nobody has.
    pub user: Option<String>,
}

keywords! {
    /// How bytes are to move.
    #[derive(clap::ValueEnum)]
    pub enum PathChoice {
        /// Each connection where it is better off: on the wire where that can be had, else in the kernel while it is quiet,
        /// if that is possible and safe, else in userspace.
        Auto = "auto",
        /// By rewriting packets, without a socket of setu, or do not start; in userspace what that cannot carry.
        Wire = "wire",
        /// In the kernel, or do not start.
        Sockmap = "sockmap",
        /// In userspace.
        Userspace = "userspace",
    }
}

/// What the wire path may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wire {
    /// Whether [`PathChoice::Auto`] may take it.
    pub auto: bool,
    /// Local ports from which upstreams are dialed; never empty. Where the wire is on, setu listens at none of them.
    pub ports: RangeInclusive<u16>,
    /// Connections at once.
    pub max_flows: NonZero<u32>,
    /// The longest segment that clients are told to send, bytes without options.
    pub mss: u16,
    /// For how many connections there is room on it here; 0 is none, where it cannot be had. What the configuration asks
    /// for is tried at the start.
    pub room: u32,
}

impl Wire {
    /// Whether connections go on it.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.room > 0
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
    /// When a client's upstream is dialed.
    pub enum Dial {
        /// When the client's first byte is there, so that who is silent costs no connection of the upstream's side.
        FirstByte = "first_byte",
        /// As soon as the client was accepted: for protocols in which the server speaks first.
        Accept = "accept",
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

/// What clients come for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Messages.
    Chat,
    /// Pictures, voice and documents.
    Media,
}

impl Purpose {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Chat, Self::Media];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Media => "media",
        }
    }
}

impl Mode {
    /// Where it sends clients who come for this; `None` if it does not serve them.
    #[must_use]
    pub fn upstream(self, purpose: Purpose) -> Option<UpstreamId> {
        match (self, purpose) {
            (Self::Chat { upstream, .. } | Self::ChatTls { upstream, .. }, Purpose::Chat)
            | (Self::Media { upstream }, Purpose::Media) => Some(upstream),
            (Self::Auto { chat, .. }, Purpose::Chat) => Some(chat),
            (Self::Auto { media, .. }, Purpose::Media) => Some(media),
            (Self::Chat { .. } | Self::ChatTls { .. }, Purpose::Media)
            | (Self::Media { .. }, Purpose::Chat) => None,
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
    /// When the upstream is dialed. [`Dial::Accept`] only for chat without a gate: the other modes must see what a client
    /// says.
    pub dial: Dial,
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

/// How long to wait. None is zero, save where that is said.
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
    /// For others to send new clients elsewhere when setu stops, before it listens no more; may be zero.
    pub lame_duck: Duration,
    /// For connections to end by themselves when setu stops.
    pub drain: Duration,
}

/// How many connections. A source is an IPv4 address, or the /64 of an IPv6 one, and the networks that it is in.
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
    /// The upstream of this name.
    #[must_use]
    pub fn upstream(&self, id: UpstreamId) -> &Upstream {
        &self.upstreams[id.0]
    }

    /// The listeners that serve who comes for this, and where each sends them.
    pub fn ways(&self, purpose: Purpose) -> impl Iterator<Item = (&Listener, UpstreamId)> {
        self.listeners.iter().filter_map(move |listener| Some((listener, listener.mode.upstream(purpose)?)))
    }

    /// Whether a listener leads to this upstream.
    #[must_use]
    pub fn is_used(&self, id: UpstreamId) -> bool {
        Purpose::ALL.into_iter().any(|purpose| self.ways(purpose).any(|(_, upstream)| upstream == id))
    }

    /// Whether a listener leads to the upstream of this name.
    #[must_use]
    pub fn leads_to(&self, upstream: &str) -> bool {
        let of_name = |(_, other): &(usize, &Upstream)| other.name == upstream;
        self.upstreams.iter().enumerate().find(of_name).is_some_and(|(id, _)| self.is_used(UpstreamId(id)))
    }

    /// Whether a listener ends TLS, for which there must be a certificate.
    #[must_use]
    pub fn ends_tls(&self) -> bool {
        self.listeners
            .iter()
            .any(|listener| matches!(listener.mode, Mode::ChatTls { .. } | Mode::Auto { .. }))
    }

    /// A port of the wire's at which setu is to listen as well, which rules the wire out: whose it is, and the address.
    pub(crate) fn wire_conflict(&self) -> Option<(String, SocketAddr)> {
        let listeners = self.listeners.iter().flat_map(|listener| {
            listener.bind.iter().map(move |bind| (format!("listener \"{}\"", listener.name), *bind))
        });
        let admin = self.admin.iter().map(|bind| ("admin.bind".into(), *bind));
        listeners.chain(admin).find(|(_, bind)| self.wire.ports.contains(&bind.port()))
    }

    /// Leaves all that takes a restart as it was `before`, so that nothing of it holds in part.
    pub fn keep_until_restart(&mut self, before: &Self) {
        self.path = before.path;
        self.wire.clone_from(&before.wire);
        self.limits.kernel_bytes = before.limits.kernel_bytes;
        self.tls.state_dir.clone_from(&before.tls.state_dir);
        self.admin.clone_from(&before.admin);
        self.user.clone_from(&before.user);
    }

    /// Keys whose values are others than `before`, and that take a restart.
    pub fn takes_restart(&self, before: &Self) -> impl Iterator<Item = &'static str> {
        let differs = [
            ("relay.path", self.path != before.path),
            ("wire.auto", self.wire.auto != before.wire.auto),
            ("wire.ports", self.wire.ports != before.wire.ports),
            ("wire.max_flows", self.wire.max_flows != before.wire.max_flows),
            ("wire.mss", self.wire.mss != before.wire.mss),
            ("limits.kernel_bytes", self.limits.kernel_bytes != before.limits.kernel_bytes),
            ("tls.state_dir", self.tls.state_dir != before.tls.state_dir),
            ("admin.bind", self.admin != before.admin),
            ("security.user", self.user != before.user),
        ];
        differs.into_iter().filter_map(|(key, differs)| differs.then_some(key))
    }
}

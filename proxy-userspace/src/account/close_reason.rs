//! Why connections end. Every connection ends with exactly one reason, and every reason is counted.

use std::fmt;

use super::Side;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a connection ended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum CloseReason { $($(#[doc = $doc])+ $variant,)+ }

        impl CloseReason {
            /// Every reason, in the order of declaration.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Its name in logs and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it means, for people.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+),)+ }
            }
        }
    };
}

reasons! {
    /// Both sides finished, the client first.
    ClientClosed = "client_closed",
    /// Both sides finished, the upstream first.
    UpstreamClosed = "upstream_closed",
    /// The client reset the connection.
    ClientReset = "client_reset",
    /// The upstream reset the connection.
    UpstreamReset = "upstream_reset",
    /// The client vanished: it acknowledged neither bytes nor keepalives.
    ClientTimedOut = "client_timed_out",
    /// The upstream vanished.
    UpstreamTimedOut = "upstream_timed_out",
    /// Both sides finished, the client first and by FIN without `close_notify`: what it sent may have been cut off.
    ClientTruncated = "client_truncated",
    /// The client's TLS did not come about: what it sent is not TLS, or not TLS that setu speaks.
    TlsFailed = "tls_failed",
    /// The client did not finish its TLS handshake in time.
    HandshakeTimeout = "handshake_timeout",
    /// The client broke its TLS after the handshake, or gave it up by an alert.
    TlsBroken = "tls_broken",
    /// Nothing moved for `timeouts.idle`.
    Idle = "idle",
    /// One side had finished, and nothing moved for `timeouts.half_close`.
    HalfCloseTimeout = "half_close_timeout",
    /// The upstream refused the connection.
    ConnectRefused = "connect_refused",
    /// No way to the upstream.
    ConnectUnreachable = "connect_unreachable",
    /// The upstream did not answer within `timeouts.connect`.
    ConnectTimeout = "connect_timeout",
    /// Every endpoint of the upstream is down.
    UpstreamDown = "upstream_down",
    /// The upstream's name has no address.
    ResolveFailed = "resolve_failed",
    /// The upstream's address is private, and `security.allow_private_upstreams` is false.
    DestinationRefused = "destination_refused",
    /// The client went away before setu knew what it wanted.
    ClientLeft = "client_left",
    /// The client's first bytes did not come within `timeouts.inspect`.
    InspectTimeout = "inspect_timeout",
    /// A client of a media listener does not speak TLS.
    NotTls = "not_tls",
    /// A client's ClientHello cannot be read.
    MalformedHello = "malformed_hello",
    /// A client asked for a name that `allow.sni` does not allow.
    NameRefused = "name_refused",
    /// Behind a gate: the client does not speak the chat protocol.
    NotChat = "not_chat",
    /// A PROXY header came from a source that `proxy_protocol.trusted` does not name.
    ProxyUntrusted = "proxy_untrusted",
    /// The PROXY header that the listener requires is missing or malformed.
    ProxyMalformed = "proxy_malformed",
    /// As many connections as `limits.connections` are open.
    LimitConnections = "limit_connections",
    /// As many connections as `limits.pending` are in inspection or handshake.
    LimitPending = "limit_pending",
    /// The client had said nothing, and its place in inspection was needed for another.
    CrowdedOut = "crowded_out",
    /// The client's source has as many connections as `limits.per_source`.
    LimitPerSource = "limit_per_source",
    /// The client's source opens connections faster than `limits.per_source_rate`.
    LimitRate = "limit_rate",
    /// Memory was short, and of the flows that stalled this one held the most.
    MemoryPressure = "memory_pressure",
    /// setu was told to stop.
    Shutdown = "shutdown",
    /// setu ran out of descriptors, ports or memory.
    OutOfResources = "out_of_resources",
    /// A defect of setu, or an error that has no name yet; the log says which.
    InternalError = "internal_error",
}

impl fmt::Display for CloseReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl CloseReason {
    /// An orderly end, named after the side whose FIN came first.
    pub(crate) fn finished(first: Side) -> Self {
        match first {
            Side::Client => Self::ClientClosed,
            Side::Upstream => Self::UpstreamClosed,
        }
    }
}

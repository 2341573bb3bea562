//! Why connections end. Every connection ends with exactly one reason, and every reason is counted.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::{
    limits::{Permit, Refused},
    upstream::Lease,
};

/// One of the two legs of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The phone's.
    Client,
    /// WhatsApp's.
    Upstream,
}

impl Side {
    /// The other leg.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Upstream,
            Self::Upstream => Self::Client,
        }
    }

    /// For arrays with one place for each leg.
    pub(crate) fn index(self) -> usize {
        match self {
            Self::Client => 0,
            Self::Upstream => 1,
        }
    }
}

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
    /// The client's source has as many connections as `limits.per_source`.
    LimitPerSource = "limit_per_source",
    /// The client's source opens connections faster than `limits.per_source_rate`.
    LimitRate = "limit_rate",
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

impl From<Refused> for CloseReason {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Total => Self::LimitConnections,
            Refused::Pending => Self::LimitPending,
            Refused::PerSource => Self::LimitPerSource,
            Refused::Rate => Self::LimitRate,
        }
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

    /// The end that an error of one leg means.
    pub(crate) fn broken(side: Side, error: &io::Error) -> Self {
        if out_of_resources(error) {
            return Self::OutOfResources;
        }
        // Not the system's: setu's own.
        if error.kind() == io::ErrorKind::Other {
            tracing::error!(%error, "a connection was reset");
            return Self::InternalError;
        }
        let vanished = matches!(
            error.kind(),
            io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
        );
        match (side, vanished) {
            (Side::Client, true) => Self::ClientTimedOut,
            (Side::Client, false) => Self::ClientReset,
            (Side::Upstream, true) => Self::UpstreamTimedOut,
            (Side::Upstream, false) => Self::UpstreamReset,
        }
    }

    /// The end that an error while connecting to the upstream means.
    pub(crate) fn connect(error: &io::Error) -> Self {
        if out_of_resources(error) {
            return Self::OutOfResources;
        }
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Self::ConnectRefused,
            io::ErrorKind::TimedOut => Self::ConnectTimeout,
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::NetworkDown => Self::ConnectUnreachable,
            // The machine has no IPv6.
            _ if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Self::ConnectUnreachable,
            _ => Self::InternalError,
        }
    }
}

/// Whether the machine, not the peer, is at fault.
pub(crate) fn out_of_resources(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL)
    )
}

/// How a flow's bytes move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Not yet.
    None,
    /// In the kernel.
    Sockmap,
    /// Through this process.
    Userspace,
}

impl fmt::Display for Path {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::None => "none",
            Self::Sockmap => "sockmap",
            Self::Userspace => "userspace",
        })
    }
}

/// How many connections ended for each reason.
#[derive(Debug)]
pub struct Counters {
    closed: [AtomicU64; CloseReason::ALL.len()],
    draining: AtomicBool,
    stopping: AtomicBool,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            closed: [const { AtomicU64::new(0) }; CloseReason::ALL.len()],
            draining: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        }
    }
}

impl Counters {
    /// Connections that ended for this reason.
    #[must_use]
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closed[reason as usize].load(Ordering::Relaxed)
    }

    /// From now on setu accepts nobody, and lets connections end.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether setu was told to stop.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// From now on a connection that is dropped ends because setu stops.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

/// A connection's account. It is closed exactly once: [`Self::close`] consumes it, and losing it counts as a defect
/// unless setu stops.
#[derive(Debug)]
pub(crate) struct Ticket {
    counters: Arc<Counters>,
    listener: Arc<str>,
    /// How the connection's bytes move, or moved last.
    pub(crate) path: Path,
    /// The connection's place among all and among its source's, held to the end.
    pub(crate) permit: Option<Permit>,
    /// The connection's place at its endpoint, held to the end.
    pub(crate) lease: Option<Lease>,
    closed: bool,
}

impl Ticket {
    /// The account of a connection that `listener` accepted.
    pub(crate) fn new(counters: Arc<Counters>, listener: Arc<str>) -> Self {
        Self { counters, listener, path: Path::None, permit: None, lease: None, closed: false }
    }

    /// The end.
    pub(crate) fn close(mut self, reason: CloseReason) {
        self.count(reason);
    }

    fn count(&mut self, reason: CloseReason) {
        self.closed = true;
        self.counters.closed[reason as usize].fetch_add(1, Ordering::Relaxed);
        tracing::debug!(%reason, path = %self.path, listener = %self.listener, "closed");
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.closed {
            let stopping = self.counters.stopping.load(Ordering::Relaxed);
            self.count(if stopping { CloseReason::Shutdown } else { CloseReason::InternalError });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ticket_is_counted_once() {
        let counters = Arc::new(Counters::default());
        Ticket::new(counters.clone(), "chat".into()).close(CloseReason::Idle);
        drop(Ticket::new(counters.clone(), "chat".into()));
        assert_eq!(counters.closed(CloseReason::Idle), 1);
        assert_eq!(counters.closed(CloseReason::InternalError), 1);
        let total: u64 = CloseReason::ALL.iter().map(|reason| counters.closed(*reason)).sum();
        assert_eq!(total, 2);
    }

    #[test]
    fn errors_are_named_after_their_side() {
        let reset = io::Error::from_raw_os_error(libc::ECONNRESET);
        let vanished = io::Error::from_raw_os_error(libc::ETIMEDOUT);
        assert_eq!(CloseReason::broken(Side::Client, &reset), CloseReason::ClientReset);
        assert_eq!(CloseReason::broken(Side::Upstream, &vanished), CloseReason::UpstreamTimedOut);
        let ports = io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);
        assert_eq!(CloseReason::connect(&ports), CloseReason::OutOfResources);
    }
}

//! Why connections end. Every connection ends with exactly one reason, and every reason is counted.

use std::fmt;

use super::Side;

/// Whose doing an end is, and so whether somebody has to look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Nobody's: so connections end, also of phones that lose their network.
    Ordinary,
    /// The client's, who is none of WhatsApp's, or gave up.
    Visitor,
    /// A limit's, which the operator has set or the machine has.
    Limit,
    /// WhatsApp's servers', the network's or this machine's: a client was not served.
    Fault,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $class:ident $(: $remedy:literal)?;)+) => {
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

            /// Whose doing it is.
            #[must_use]
            pub const fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class,)+ }
            }

            /// What an operator can do about it, where there is something.
            #[must_use]
            pub fn remedy(self) -> Option<&'static str> {
                let remedy: &[&str] = match self { $(Self::$variant => &[$($remedy)?],)+ };
                remedy.first().copied()
            }
        }
    };
}

reasons! {
    /// Both sides finished, the client first.
    ClientClosed = "client_closed", Ordinary;
    /// Both sides finished, the upstream first.
    UpstreamClosed = "upstream_closed", Ordinary;
    /// The client reset the connection.
    ClientReset = "client_reset", Ordinary;
    /// The upstream reset the connection.
    UpstreamReset = "upstream_reset", Ordinary;
    /// The client vanished: it acknowledged neither bytes nor keepalives.
    ClientTimedOut = "client_timed_out", Ordinary;
    /// The upstream vanished.
    UpstreamTimedOut = "upstream_timed_out", Fault:
        "If it goes on: the network between this server and WhatsApp loses packets, or cuts connections. Ask the provider.";
    /// Both sides finished, the client first and by FIN without `close_notify`: what it sent may have been cut off.
    ClientTruncated = "client_truncated", Ordinary;
    /// The client's TLS did not come about: what it sent is not TLS, or not TLS that setu speaks.
    TlsFailed = "tls_failed", Visitor;
    /// The client did not finish its TLS handshake in time.
    HandshakeTimeout = "handshake_timeout", Visitor;
    /// The client broke its TLS after the handshake, or gave it up by an alert.
    TlsBroken = "tls_broken", Visitor;
    /// Nothing moved for `timeouts.idle`.
    Idle = "idle", Ordinary;
    /// One side had finished, and nothing moved for `timeouts.half_close`.
    HalfCloseTimeout = "half_close_timeout", Ordinary;
    /// The upstream refused the connection.
    ConnectRefused = "connect_refused", Fault:
        "Run `setu doctor`. Something on the way refuses it: the provider, a firewall, or a wrong port in `upstream`.";
    /// No way to the upstream.
    ConnectUnreachable = "connect_unreachable", Fault:
        "Look at this server's network: `ip route get`, and whether IPv6 has a route if it is on.";
    /// The upstream did not answer within `timeouts.connect`.
    ConnectTimeout = "connect_timeout", Fault:
        "Run `setu doctor`. If it fails as well, a firewall or the provider drops what goes to WhatsApp.";
    /// Every endpoint of the upstream is down.
    UpstreamDown = "upstream_down", Fault:
        "It is tried again by itself. See which server does not answer, and its last failure, among WhatsApp's servers.";
    /// The upstream's name has no address.
    ResolveFailed = "resolve_failed", Fault:
        "Look at the resolvers of this server: `/etc/resolv.conf`, and whether they answer.";
    /// The upstream's address is private, and `security.allow_private_upstreams` is false.
    DestinationRefused = "destination_refused", Fault:
        "A resolver gives a private address for WhatsApp: it lies, or the name in `upstream` is wrong.";
    /// The client went away before setu knew what it wanted.
    ClientLeft = "client_left", Ordinary;
    /// The client's first bytes did not come within `timeouts.inspect`.
    InspectTimeout = "inspect_timeout", Visitor;
    /// A client of a media listener does not speak TLS.
    NotTls = "not_tls", Visitor;
    /// A client's ClientHello cannot be read.
    MalformedHello = "malformed_hello", Visitor;
    /// A client asked for a name that `allow.sni` does not allow.
    NameRefused = "name_refused", Visitor;
    /// Behind a gate: the client does not speak the chat protocol.
    NotChat = "not_chat", Visitor;
    /// A PROXY header came from a source that `proxy_protocol.trusted` does not name.
    ProxyUntrusted = "proxy_untrusted", Visitor:
        "If it is your load balancer, name it in `proxy_protocol.trusted`.";
    /// The PROXY header that the listener requires is missing or malformed.
    ProxyMalformed = "proxy_malformed", Visitor:
        "If it is your load balancer, have it send PROXY headers, or set `accept_proxy_protocol = false`.";
    /// As many connections as `limits.connections` are open.
    LimitConnections = "limit_connections", Limit:
        "If these are people, raise `limits.connections` as far as `setu check` says there is room, or add a server.";
    /// As many connections as `limits.pending` are in inspection or handshake.
    LimitPending = "limit_pending", Limit:
        "A flood, or many at once after an outage. If it goes on with people among them, raise `limits.pending`.";
    /// The client had said nothing, and its place in inspection was needed for another.
    CrowdedOut = "crowded_out", Limit:
        "A flood, scanners, or clients on a very slow network. Who speaks is served; `limits.pending` has room for more.";
    /// The client's source has as many connections as `limits.per_source`.
    LimitPerSource = "limit_per_source", Limit:
        "Many people behind one address? Name it in `limits.exempt`, raise the limit, or use PROXY protocol behind a load balancer.";
    /// The client's source opens connections faster than `limits.per_source_rate`.
    LimitRate = "limit_rate", Limit:
        "A flood, or many people behind one address: name it in `limits.exempt`, or raise `limits.per_source_rate`.";
    /// Memory was short, and of the flows that stalled this one held the most.
    MemoryPressure = "memory_pressure", Limit:
        "Readers that stall, by an attack or on slow networks, and too little memory: more of it, or a higher limit of the container.";
    /// setu was told to stop.
    Shutdown = "shutdown", Ordinary;
    /// setu ran out of descriptors, ports or memory.
    OutOfResources = "out_of_resources", Fault:
        "Raise `LimitNOFILE`, or lower `limits.connections`; `setu check` reckons what this machine has room for.";
    /// A defect of setu, or an error that has no name yet; the log says which.
    InternalError = "internal_error", Fault:
        "Look at the log, and report what it says.";
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_to_look_is_told_what_to_do() {
        for reason in CloseReason::ALL {
            let is_told = reason.remedy().is_some();
            match reason.class() {
                Class::Limit | Class::Fault => assert!(is_told, "{reason}"),
                Class::Ordinary => assert!(!is_told, "{reason}"),
                Class::Visitor => {}
            }
        }
    }
}

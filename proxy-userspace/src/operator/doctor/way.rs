//! The ways that phones have into a server, and what came of each.

/// What phones want of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Service {
    /// Messages.
    Chat,
    /// Pictures, voice messages, files.
    Media,
}

/// How a phone uses a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trial {
    /// The chat protocol in the clear.
    Chat,
    /// The chat protocol inside TLS, which ends in the proxy.
    ChatTls,
    /// TLS with a media server.
    Media,
}

impl Trial {
    /// What it is tried for.
    pub(super) fn service(self) -> Service {
        match self {
            Self::Chat | Self::ChatTls => Service::Chat,
            Self::Media => Service::Media,
        }
    }
}

/// What came of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// WhatsApp answered.
    Works,
    /// This machine has no route to the address.
    NoRoute,
    /// No connection came about.
    Closed,
    /// There was a connection, but no answer.
    Unanswered,
    /// The answer is not WhatsApp's.
    Foreign,
    /// A certificate is not valid at this machine's time.
    Dated,
}

/// A port that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) service: Service,
    pub(super) port: u16,
    pub(super) outcome: Outcome,
    /// Whether phones need it.
    pub(super) is_needed: bool,
    /// Where it leads, if that is known: ways with the same number end at the same servers.
    pub(super) upstream: Option<usize>,
}

impl Way {
    /// Whether a connection came about.
    pub(super) fn is_reached(&self) -> bool {
        !matches!(self.outcome, Outcome::Closed | Outcome::NoRoute)
    }

    pub(super) fn works(&self) -> bool {
        self.outcome == Outcome::Works
    }
}

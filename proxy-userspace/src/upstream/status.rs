//! What is known of an endpoint, for the operator.

use std::time::Instant;

use crate::account::CloseReason;

/// What is known of an endpoint, for the operator.
#[derive(Debug, Clone)]
pub(crate) struct EndpointStatus {
    /// The upstream's name.
    pub(crate) upstream: String,
    /// `host:port` of the configuration.
    pub(crate) endpoint: String,
    /// Whether clients are sent there.
    pub(crate) standing: Standing,
    /// Since when it stands so.
    pub(crate) since: Instant,
    /// Why it could last not be reached; kept after it is up again.
    pub(crate) last_error: Option<CloseReason>,
    /// Connections to it, and attempts.
    pub(crate) connections: usize,
}

/// Whether an endpoint can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nobody has tried yet.
    Untried,
    /// It answers.
    Up,
    /// It is ejected, or has done nothing but fail.
    Down,
}

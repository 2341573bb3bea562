//! What comes of a question for a name's addresses.

use std::{net::IpAddr, sync::Arc, time::Duration};

/// Why a name has no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameFailure {
    /// There is no such name, or it has no address.
    NoSuchName,
    /// The resolvers did not answer, or could not.
    Unanswered,
    /// All its addresses are forbidden.
    Refused,
    /// Too many lookups are under way.
    Busy,
}

impl NameFailure {
    /// Every failure.
    pub(crate) const ALL: [Self; 4] = [Self::NoSuchName, Self::Unanswered, Self::Refused, Self::Busy];

    /// Its name in logs and metrics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::NoSuchName => "no_such_name",
            Self::Unanswered => "unanswered",
            Self::Refused => "refused",
            Self::Busy => "busy",
        }
    }
}

/// Addresses of a name, shared with the table.
pub(crate) type Addresses = Arc<[IpAddr]>;
pub(super) type Answer = Result<Addresses, NameFailure>;

/// What a lookup found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Of both families, IPv6 first.
    pub(super) addresses: Vec<IpAddr>,
    /// The shortest of all records.
    pub(super) ttl: Duration,
}

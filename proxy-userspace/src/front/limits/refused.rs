//! Why a connection is not let in.

use thiserror::Error;

use crate::account::CloseReason;

/// Why a connection is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refused {
    /// As many connections as setu may have.
    #[error("all connections are in use")]
    Total,
    /// As many in inspection or handshake as there may be.
    #[error("too many connections in inspection or handshake")]
    Pending,
    /// As many as one source may have.
    #[error("too many connections of one source")]
    PerSource,
    /// Too many new ones of one source in a short time.
    #[error("too many new connections of one source")]
    Rate,
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

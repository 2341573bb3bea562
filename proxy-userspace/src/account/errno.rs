//! What an error of the system means for a connection. Nothing else in setu decides that.

use std::io;

use super::{CloseReason, Side};

impl CloseReason {
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

#[cfg(test)]
mod tests {
    use super::*;

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

//! What an error of the system means for a connection, and which of its words mean two things. Nothing else in setu decides
//! that.

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
            _ if lacks_family(error) => Self::ConnectUnreachable,
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

/// Whether this machine was built or started without the address's family: IPv6.
pub(crate) fn lacks_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// Whether this machine has no local port left, or no address, to connect from: the system has one word for both.
pub(crate) fn lacks_a_source(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EADDRNOTAVAIL)
}

/// Whether there is no way from here.
pub(crate) fn lacks_a_route(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable)
}

/// How much an error tells of the upstream: that this machine lacks something outdoes all, that it lacks a route (it
/// may have no IPv6 at all) is outdone by all.
pub(crate) fn rank(error: &io::Error) -> u8 {
    match error {
        _ if out_of_resources(error) => 2,
        _ if lacks_a_route(error) => 0,
        _ => 1,
    }
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

    #[test]
    fn what_tells_most_is_ranked_highest() {
        let ranks = [libc::ENETUNREACH, libc::ECONNREFUSED, libc::EADDRNOTAVAIL]
            .map(|code| rank(&io::Error::from_raw_os_error(code)));
        assert_eq!(ranks, [0, 1, 2]);
    }
}

//! Both connections of a flow, while it is not over.

use std::{
    io, net,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::sys;

/// Client's and upstream's connection. What is still here when it is dropped is reset, not closed: a peer must never take
/// a cut, by the other side's failure, by silence or by the end of setu, for the end of a stream.
#[derive(Debug, Default)]
pub(super) struct Legs(Option<[TcpStream; 2]>);

impl Legs {
    /// Holds them from now on.
    pub(super) fn hold(&mut self, client: TcpStream, upstream: TcpStream) -> &mut [TcpStream; 2] {
        self.0.insert([client, upstream])
    }

    /// Lets them go as they are. `None` when they are gone already.
    pub(super) fn release(&mut self) -> Option<[TcpStream; 2]> {
        self.0.take()
    }

    /// Closes them in order: both streams have ended. `lasted`: they were made to reset.
    pub(super) fn close(&mut self, lasted: bool) {
        let legs = self.0.take().into_iter().flatten();
        if lasted {
            legs.for_each(close_in_order);
        } else {
            legs.for_each(drop);
        }
    }
}

impl Drop for Legs {
    fn drop(&mut self) {
        self.0.iter().flatten().for_each(reset_on_close);
    }
}

/// Closes a connection whose stream has ended.
pub(super) fn close_in_order(leg: TcpStream) {
    // An error means that the connection is gone.
    let _ = SockRef::from(&leg).set_linger(None);
}

/// Makes the close of a connection an RST, whoever closes it: the kernel, when setu is killed, as well.
pub(super) fn reset_on_close(leg: &TcpStream) {
    // An error means that the connection is gone.
    let _ = SockRef::from(leg).set_linger(Some(Duration::ZERO));
}

/// Takes two connections that this thread's runtime does not know, and whose close is a reset: so it is when it cannot
/// have both.
///
/// # Errors
/// Out of watches, or of memory for them.
pub(super) fn register(legs: [OwnedFd; 2]) -> io::Result<[TcpStream; 2]> {
    let [client, upstream] = legs.map(|leg| TcpStream::from_std(net::TcpStream::from(leg)));
    Ok([client?, upstream?])
}

/// Lets this thread's runtime look anew at what can be read and written.
///
/// # Errors
/// As [`register`].
pub(super) fn register_anew(legs: [TcpStream; 2]) -> io::Result<[TcpStream; 2]> {
    legs.iter().for_each(reset_on_close);
    let [client, upstream] = legs.map(TcpStream::into_std);
    register([client?.into(), upstream?.into()])
}

/// Memory that the kernel holds for them, bytes. An error is met again by whoever reads.
pub(super) fn held(legs: [&TcpStream; 2]) -> u64 {
    legs.into_iter().filter_map(|leg| sys::held(leg.as_fd()).ok()).sum()
}

/// Whether nothing waits in the receive queue. An error is met again by whoever reads.
pub(super) fn is_read(leg: &TcpStream) -> bool {
    matches!(sys::queued(leg.as_fd()), Ok(0))
}

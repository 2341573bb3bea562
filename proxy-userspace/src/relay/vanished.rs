//! Finds out that a peer is gone without a word. The kernel does that, by timers of its own.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Of `timeouts.vanished`, a leg is silent for one part in so many before it is asked for a sign of life, and is asked
/// again after one part in so many.
const IDLE_PART: u32 = 2;
const INTERVAL_PART: u32 = 8;
/// The kernel counts these times in seconds.
const MIN: Duration = Duration::from_secs(1);

/// Has the kernel break legs whose peers have not been heard of for `timeouts.vanished`.
pub(crate) fn watch(legs: [&TcpStream; 2], vanished: Duration) {
    let keepalive = TcpKeepalive::new()
        .with_time((vanished / IDLE_PART).max(MIN))
        .with_interval((vanished / INTERVAL_PART).max(MIN));
    for leg in legs.map(SockRef::from) {
        // Errors mean that the connection is gone, which the relay finds out.
        let _ = leg.set_tcp_keepalive(&keepalive);
        // For bytes on their way, and for the questions above (`tcp_keepalive_timer`, net/ipv4/tcp_timer.c).
        let _ = leg.set_tcp_user_timeout(Some(vanished));
    }
}

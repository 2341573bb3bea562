//! The moment in which a flow goes on the wire.
//!
//! While it lasts nobody but the keeper touches the sockets. Any step that fails leaves all as it was, and the flow is
//! relayed on.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use proxy_common::wire::{
    checksum,
    layout::{
        CLEAR_ECN, COUNT, FIN_SEEN, ODD_OPTIONS, OWN_ACKNOWLEDGED, RST_SEEN, TICK_SHIFT, TIMESTAMP_SEEN,
    },
};

use super::{eligible::Leg, names::words};
use crate::{
    relay::wire::message::WireRefusal,
    sys::{self, ConnRef, Constants, Numbers, Seen},
};

/// A TSval that was noted longer ago than this is no guide to the peer's clock.
const FRESH: u32 = (Duration::from_secs(1).as_nanos() >> TICK_SHIFT) as u32;

/// Why a flow is not on the wire yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotYet {
    /// Not in this moment.
    Busy,
    /// Peers have to be asked for a sign of life first.
    Stale,
    /// Never.
    Refused(WireRefusal),
}

impl From<std::io::Error> for NotYet {
    fn from(_: std::io::Error) -> Self {
        Self::Refused(WireRefusal::Kernel)
    }
}

/// Whether a peer's timestamps are known well enough, where they are in use.
pub(super) fn knows_time(seen: &Seen, leg: &Leg, now: u32) -> bool {
    let is_fresh = seen.flags & TIMESTAMP_SEEN != 0 && now.wrapping_sub(seen.timestamp_at) < FRESH;
    !leg.info.timestamps || is_fresh
}

/// Makes the program translate the flow, or leaves all as it is.
pub(super) fn arm(
    conn: ConnRef<'_>,
    sockets: &[OwnedFd; 2],
    legs: &[Leg; 2],
    ahead: [u32; 2],
) -> Result<(), NotYet> {
    let gate = conn.gate();
    for (socket, ahead) in sockets.iter().zip(ahead) {
        let socket = socket.as_fd();
        if sys::queued(socket)? != u64::from(ahead) || sys::unsent(socket)? != 0 {
            return Err(NotYet::Busy);
        }
        // Something out of order: it was acknowledged, and would have to be sent again all the same.
        if ahead == 0 && sys::held_received(socket)? != 0 {
            return Err(NotYet::Busy);
        }
        let info = sys::leg_info(socket)?;
        if !info.established {
            return Err(NotYet::Refused(WireRefusal::Finished));
        }
        if !info.heard {
            return Err(NotYet::Busy);
        }
    }
    let seen = [conn.seen(0), conn.seen(1)];
    let now = sys::monotonic_coarse_tick();
    for (seen, leg) in seen.iter().zip(legs) {
        if seen.flags & (FIN_SEEN | RST_SEEN) != 0 {
            return Err(NotYet::Refused(WireRefusal::Finished));
        }
        if seen.flags & ODD_OPTIONS != 0 {
            return Err(NotYet::Refused(WireRefusal::Options));
        }
        if !knows_time(seen, leg, now) {
            return Err(NotYet::Stale);
        }
    }
    for socket in sockets {
        // What it owes it sends now.
        sys::acknowledge_now(socket.as_fd())?;
    }
    let numbers = [sys::numbers(sockets[0].as_fd())?, sys::numbers(sockets[1].as_fd())?];
    // A packet that was counted before the gate was read may have come in since: then the numbers have it, and nobody has read
    // it.
    for (socket, ahead) in sockets.iter().zip(ahead) {
        if sys::queued(socket.as_fd())? != u64::from(ahead) {
            return Err(NotYet::Busy);
        }
    }
    let mut acknowledged = [false; 2];
    for side in 0..2 {
        // All that was passed has arrived.
        let ahead = seen[side].passed_end.wrapping_sub(numbers[side].received) as i32;
        if gate & COUNT != 0 && seen[side].passed_end != 0 && ahead > 0 {
            return Err(NotYet::Busy);
        }
        acknowledged[side] = sys::unacknowledged(sockets[side].as_fd())? == 0;
    }
    let both = constants(legs, &numbers, &seen);
    for side in 0..2 {
        let start = Seen {
            end: numbers[side].received,
            acknowledged: numbers[side].written,
            flags: if acknowledged[side] { OWN_ACKNOWLEDGED } else { 0 },
            last: now,
            moved: now,
            ..Seen::default()
        };
        conn.prepare(side, &both[side], start);
    }
    if conn.activate(gate) { Ok(()) } else { Err(NotYet::Busy) }
}

/// What happens to the packets of each side.
fn constants(legs: &[Leg; 2], numbers: &[Numbers; 2], seen: &[Seen; 2]) -> [Constants; 2] {
    let add_timestamp = |from: usize, to: usize| {
        // Never behind what setu itself has sent.
        numbers[to].timestamp.wrapping_add(1).wrapping_sub(seen[from].timestamp)
    };
    [(0, 1), (1, 0)].map(|(from, to)| {
        let (x, y) = (&legs[from], &legs[to]);
        let has_timestamps = x.info.timestamps;
        let mut options = 0;
        if x.info.ecn != y.info.ecn {
            options |= CLEAR_ECN;
        }
        Constants {
            source: words(y.local.ip()),
            destination: words(y.peer.ip()),
            source_port: y.local.port().to_be(),
            destination_port: y.peer.port().to_be(),
            out_device: y.way.device,
            add_sequence: numbers[to].written.wrapping_sub(numbers[from].received),
            add_acknowledgement: numbers[to].received.wrapping_sub(numbers[from].written),
            add_timestamp: if has_timestamps { add_timestamp(from, to) } else { 0 },
            add_echo: if has_timestamps { add_timestamp(to, from).wrapping_neg() } else { 0 },
            own_acknowledged: numbers[from].written,
            own_received: numbers[from].received,
            address_difference: checksum::of_addresses(
                [words(x.peer.ip()), words(x.local.ip())],
                [words(y.local.ip()), words(y.peer.ip())],
            ),
            window_shift_in: x.info.send_window_scale,
            window_shift_out: y.info.receive_window_scale,
            options,
        }
    })
}

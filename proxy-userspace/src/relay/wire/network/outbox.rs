//! Packets that wait to be sent: not too many at a time, and none before the next hop's Ethernet address is known.

use std::{
    collections::VecDeque,
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use netlink_packet_route::RouteNetlinkMessage;

use super::{links::Links, netlink::Netlink, packet::Packet, routes};
use crate::sys;

/// As many packets wait at most.
const MOST: usize = 4096;

/// The time for one packet: not more than 1,000 a second go out.
const EACH: Duration = Duration::from_millis(1);

/// As many may go at once after a while of silence.
const BURST: u32 = 100;

/// How long a packet whose next hop is not known waits until it is tried again, and for how long in all.
const AGAIN: Duration = Duration::from_millis(50);
const IN_ALL: Duration = Duration::from_secs(3);

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

#[derive(Debug)]
struct Waiting {
    packet: Packet,
    since: Instant,
    due: Instant,
}

#[derive(Debug)]
pub(super) struct Outbox {
    socket: OwnedFd,
    /// In the order of `due`.
    waiting: VecDeque<Waiting>,
    /// When the rate would be used up to the last packet that was tried: at most a burst before now.
    spent: Option<Instant>,
}

impl Outbox {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, waiting: VecDeque::new(), spent: None }
    }

    /// Whether there was room.
    pub(super) fn push(&mut self, packet: Packet, now: Instant) -> bool {
        let room = self.waiting.len() < MOST;
        if room {
            self.put(Waiting { packet, since: now, due: now });
        }
        room
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    fn put(&mut self, waiting: Waiting) {
        let at = self.waiting.partition_point(|other| other.due <= waiting.due);
        self.waiting.insert(at, waiting);
    }

    /// When the first of them may go.
    pub(super) fn next(&self) -> Option<Instant> {
        let due = self.waiting.front()?.due;
        Some(self.spent.map_or(due, |spent| due.max(spent + EACH)))
    }

    /// Sends what may go by now.
    pub(super) fn send(&mut self, route: &mut Netlink<RouteNetlinkMessage>, links: &Links, now: Instant) {
        while self.next().is_some_and(|next| next <= now) {
            let Some(waiting) = self.waiting.pop_front() else { break };
            let least = now.checked_sub(EACH * BURST).unwrap_or(now);
            self.spent = Some(self.spent.map_or(least, |spent| spent.max(least)) + EACH);
            let lasts = now.saturating_duration_since(waiting.since) < IN_ALL;
            if !self.try_send(route, links, &waiting.packet) && lasts {
                self.put(Waiting { due: now + AGAIN, ..waiting });
            }
        }
    }

    /// Whether nothing is left to do for it: it was sent, or there is no way.
    fn try_send(&self, route: &mut Netlink<RouteNetlinkMessage>, links: &Links, packet: &Packet) -> bool {
        let Ok(way) = routes::way(route, links, packet.from, packet.to) else { return true };
        let Ok(Some(next_hop)) = routes::neighbour(route, way.device, way.next_hop) else { return false };
        let kind = if packet.to.is_ipv4() { IPV4 } else { IPV6 };
        let frame = [&next_hop[..], &way.mac, &kind, &packet.bytes].concat();
        sys::send_frame(self.socket.as_fd(), way.device, &frame).is_ok()
    }
}

//! Which addresses of an upstream failed lately: they are tried last, so that what is dead costs one connection a
//! quarter of a second and not every one (RFC 8305, section 4, lets a client use what it knows of addresses).
//!
//! Addresses of upstreams are remembered here, for all clients alike, and nothing of a client. Time is passed in.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long an address that failed is tried last. What is dead seldom comes back soon, and nobody waits for it: there is
/// another that answers. So this only says how often a connection has to find out.
const PAUSE: Duration = Duration::from_secs(10 * 60);
/// Addresses that are remembered: those of 64 names, all of them dead. A name that clients choose may have any number of
/// them.
const ADDRESSES_MAX: usize = 1_024;

/// Addresses that failed, each with the time until which it is tried last. Shared by all workers.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<HashMap<SocketAddr, Instant>>);

impl History {
    /// Puts last what failed; beyond that the order stays, so that addresses that all failed are tried as if none had.
    /// One of those whose pause is over keeps its place: the caller finds out how it is now, and until that is known
    /// the others that come try it last, as before.
    pub(super) fn put_failed_last(&self, addresses: &mut [SocketAddr], now: Instant) {
        let mut failed = self.lock();
        // Where nothing fails this is all that it costs.
        if failed.is_empty() {
            return;
        }
        let is_due = |address: &&SocketAddr| failed.get(address).is_some_and(|until| *until <= now);
        let probed = addresses.iter().find(is_due).copied();
        if let Some(until) = probed.and_then(|address| failed.get_mut(&address)) {
            *until = now + PAUSE;
        }
        // It is stable.
        addresses.sort_by_key(|address| probed != Some(*address) && failed.contains_key(address));
    }

    /// It could not be reached, or was silent for so long that another was tried.
    pub(super) fn failed(&self, address: SocketAddr, now: Instant) {
        let mut failed = self.lock();
        if failed.len() >= ADDRESSES_MAX && !failed.contains_key(&address) {
            let first = failed.iter().min_by_key(|(_, until)| **until).map(|(address, _)| *address);
            first.and_then(|address| failed.remove(&address));
        }
        failed.insert(address, now + PAUSE);
    }

    /// It answered.
    pub(super) fn connected(&self, address: SocketAddr) {
        self.lock().remove(&address);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Instant>> {
        // Nothing in here panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(number: u32) -> SocketAddr {
        (Ipv4Addr::from_bits(0xc633_6400 + number), 5222).into()
    }

    /// The order in which addresses 1 to 4 are tried.
    fn order(history: &History, now: Instant) -> Vec<u32> {
        let mut all: Vec<_> = (1..=4).map(address).collect();
        history.put_failed_last(&mut all, now);
        let number = |wanted: SocketAddr| (1..=4).find(|number| address(*number) == wanted);
        all.into_iter().filter_map(number).collect()
    }

    #[test]
    fn what_failed_is_tried_last_until_it_answers() {
        let (history, now) = (History::default(), Instant::now());
        assert_eq!(order(&history, now), [1, 2, 3, 4]);
        for number in [2, 1] {
            history.failed(address(number), now);
        }
        assert_eq!(order(&history, now), [3, 4, 1, 2]);
        history.connected(address(1));
        assert_eq!(order(&history, now), [1, 3, 4, 2]);
    }

    #[test]
    fn when_all_failed_the_order_is_as_if_none_had() {
        let (history, now) = (History::default(), Instant::now());
        for number in [3, 1, 4, 2] {
            history.failed(address(number), now);
        }
        assert_eq!(order(&history, now), [1, 2, 3, 4]);
    }

    #[test]
    fn after_the_pause_one_connection_at_a_time_finds_out() {
        let (history, now) = (History::default(), Instant::now());
        for number in [1, 2] {
            history.failed(address(number), now);
        }
        let almost = now + PAUSE - Duration::from_nanos(1);
        assert_eq!(order(&history, almost), [3, 4, 1, 2]);
        // One pays for 1, the next for 2, and nobody after them.
        let over = now + PAUSE;
        assert_eq!(order(&history, over), [1, 3, 4, 2]);
        assert_eq!(order(&history, over), [2, 3, 4, 1]);
        for later in [over, over + PAUSE / 2] {
            assert_eq!(order(&history, later), [3, 4, 1, 2]);
        }
        history.failed(address(1), over + PAUSE / 2);
        assert_eq!(order(&history, over + PAUSE), [2, 3, 4, 1]);
        assert_eq!(order(&history, over + PAUSE), [3, 4, 1, 2]);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes() {
        let (history, now) = (History::default(), Instant::now());
        let max = u32::try_from(ADDRESSES_MAX).unwrap();
        for number in 1..=max {
            history.failed(address(number), now + Duration::from_secs(number.into()));
        }
        // What is known already takes no room.
        history.failed(address(2), now + Duration::from_secs(u64::from(max) + 1));
        assert_eq!(order(&history, now), [1, 2, 3, 4]);
        history.failed(address(max + 1), now + Duration::from_secs(u64::from(max) + 2));
        assert_eq!(history.lock().len(), ADDRESSES_MAX);
        assert_eq!(order(&history, now), [1, 2, 3, 4]);
        history.failed(address(max + 2), now + Duration::from_secs(u64::from(max) + 3));
        assert!(!history.lock().contains_key(&address(1)) && !history.lock().contains_key(&address(3)));
        assert_eq!(order(&history, now), [1, 3, 2, 4]);
    }
}

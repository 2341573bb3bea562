//! Local ports for connections whose sockets will be closed while the connection lives: those of the wire.
//!
//! Of such a connection the kernel knows nothing any more, and would let another one have its name: source address and
//! port, server's address and port. The newcomer's SYN would get no answer. So setu has ports of its own (`wire.ports`),
//! which the kernel gives nobody by itself, and keeps account of the names in use. Of connections that have a socket the
//! kernel keeps account: it refuses to connect under their names (`__inet_check_established`,
//! net/ipv4/inet_hashtables.c), whoever has them.
//!
//! A source that the kernel chooses is known only when the connection is there, and may be any. So a port without a source
//! is leased for all of them: to nobody else for the same server, whatever source.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a name is left alone after its connection is gone, for what is on its way still: as long as TIME_WAIT lasts
/// (`TCP_TIMEWAIT_LEN`, include/net/tcp.h).
const REST: Duration = Duration::from_secs(60);
/// No connection that lasted for less was without its socket, so the kernel knows all there is to know of it.
pub(crate) const SHORT: Duration = Duration::from_millis(200);
/// Sources and servers that may have ports in use at once; each takes a bit of memory for each port. Servers that clients
/// name are of a few networks, so that there are some hundreds.
const PAIRS: usize = 1024;

/// The ports, shared by all workers.
#[derive(Debug)]
pub(crate) struct Ports {
    range: RangeInclusive<u16>,
    shared: Mutex<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Few, so that they are looked through. Those that have no port in use are taken by others.
    pairs: Vec<Pair>,
    /// Names whose connections are gone, with when they may be used again, the next first.
    resting: VecDeque<(Instant, Name)>,
}

/// A source, and a server.
#[derive(Debug)]
struct Pair {
    /// `None`: any.
    source: Option<IpAddr>,
    server: SocketAddr,
    /// A bit for each port that is in use, or rests. Those beyond the range are set.
    taken: Box<[u64]>,
    /// How many of the range are.
    count: usize,
}

/// Where a name stands: its pair, and its port's place in the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Name {
    pair: usize,
    port: usize,
}

/// The right to a name. It must live for as long as the connection, with its sockets or without.
#[derive(Debug)]
pub(crate) struct PortLease {
    ports: Arc<Ports>,
    name: Name,
    since: Instant,
}

impl Ports {
    /// Of which none is in use.
    pub(crate) fn new(range: RangeInclusive<u16>) -> Arc<Self> {
        Arc::new(Self { range, shared: Mutex::default() })
    }

    /// A port from which to connect; `None` as source is the one that the kernel will choose. `None` as answer: all are in
    /// use, or rest.
    pub(crate) fn lease(
        self: &Arc<Self>,
        source: Option<IpAddr>,
        server: SocketAddr,
        now: Instant,
    ) -> Option<PortLease> {
        // At random, for a setu that began where the one before it did would meet its connections at the server.
        let first = fastrand::usize(..self.range.len().max(1));
        let name = self.lock().take(source, server, self.range.len(), first, now)?;
        Some(PortLease { ports: self.clone(), name, since: now })
    }

    /// The right to a name that was in use before this process was. `None`: it is none of these ports, or taken.
    pub(crate) fn restore(
        self: &Arc<Self>,
        source: IpAddr,
        port: u16,
        server: SocketAddr,
        now: Instant,
    ) -> Option<PortLease> {
        if !self.range.contains(&port) {
            return None;
        }
        let port = usize::from(port - self.range.start());
        let mut shared = self.lock();
        let pair = shared.pair(Some(source), server, self.range.len())?;
        shared.pairs[pair].set(port).then_some(())?;
        // It has lasted for who knows how long.
        let since = now.checked_sub(SHORT).unwrap_or(now);
        Some(PortLease { ports: self.clone(), name: Name { pair, port }, since })
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Nothing in here panics half-way through a change.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PortLease {
    /// The port.
    pub(crate) fn port(&self) -> u16 {
        // The range's length is no more than there are ports.
        self.ports.range.start() + self.name.port as u16
    }

    fn give_back(&self, now: Instant) {
        let mut shared = self.ports.lock();
        if now.saturating_duration_since(self.since) < SHORT {
            shared.free(self.name);
        } else {
            shared.resting.push_back((now + REST, self.name));
        }
    }
}

impl Drop for PortLease {
    fn drop(&mut self) {
        self.give_back(Instant::now());
    }
}

impl Shared {
    /// Takes the first port that is free from `first` on, in a circle.
    fn take(
        &mut self,
        source: Option<IpAddr>,
        server: SocketAddr,
        len: usize,
        first: usize,
        now: Instant,
    ) -> Option<Name> {
        while let Some((_, name)) = self.resting.pop_front_if(|(until, _)| *until <= now) {
            self.free(name);
        }
        let pair = self.pair(source, server, len)?;
        let port = {
            let rivals: Vec<&[u64]> = self
                .pairs
                .iter()
                .filter(|other| other.meets(source, server))
                .map(|other| &*other.taken)
                .collect();
            first_free(&rivals, first)?
        };
        self.pairs[pair].set(port);
        Some(Name { pair, port })
    }

    fn free(&mut self, name: Name) {
        self.pairs[name.pair].clear(name.port);
    }

    /// The place of a pair, which is made where there is none. `None`: there are too many.
    fn pair(&mut self, source: Option<IpAddr>, server: SocketAddr, len: usize) -> Option<usize> {
        let is_meant = |pair: &Pair| pair.source == source && pair.server == server;
        if let Some(known) = self.pairs.iter().position(is_meant) {
            return Some(known);
        }
        if let Some(unused) = self.pairs.iter().position(|pair| pair.count == 0) {
            let pair = &mut self.pairs[unused];
            (pair.source, pair.server) = (source, server);
            return Some(unused);
        }
        if self.pairs.len() == PAIRS {
            return None;
        }
        let mut taken = vec![0; len.div_ceil(64)].into_boxed_slice();
        if let Some(last) = taken.last_mut().filter(|_| !len.is_multiple_of(64)) {
            *last = !0 << (len % 64);
        }
        self.pairs.push(Pair { source, server, taken, count: 0 });
        Some(self.pairs.len() - 1)
    }
}

impl Pair {
    /// Whether a connection of this pair could have the same name as one from that source to that server.
    fn meets(&self, source: Option<IpAddr>, server: SocketAddr) -> bool {
        self.server == server && (source.is_none() || self.source.is_none() || self.source == source)
    }

    /// Returns whether it was free.
    fn set(&mut self, port: usize) -> bool {
        let (word, bit) = (&mut self.taken[port / 64], 1 << (port % 64));
        let was_free = *word & bit == 0;
        *word |= bit;
        self.count += usize::from(was_free);
        was_free
    }

    fn clear(&mut self, port: usize) {
        self.taken[port / 64] &= !(1 << (port % 64));
        self.count -= 1;
    }
}

/// The first bit that none of these have, from `first` on, in a circle. All are as long as each other.
fn first_free(taken: &[&[u64]], first: usize) -> Option<usize> {
    let words = taken.first()?.len();
    // The word that it begins in comes twice: at first without the bits before, at last without those from there on.
    (0..=words).find_map(|step| {
        let at = (first / 64 + step) % words;
        let from_first = !0 << (first % 64);
        let looked_at = match step {
            0 => from_first,
            _ if step == words => !from_first,
            _ => !0,
        };
        let free = !taken.iter().fold(0, |all, words| all | words[at]) & looked_at;
        (free != 0).then(|| at * 64 + free.trailing_zeros() as usize)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const RANGE: RangeInclusive<u16> = 10_000..=10_099;

    fn server(last: u8) -> SocketAddr {
        ([192, 0, 2, last], 443).into()
    }

    fn source(last: u8) -> Option<IpAddr> {
        Some([10, 0, 0, last].into())
    }

    /// As many as there are, from one source to one server.
    fn all(ports: &Arc<Ports>, source: Option<IpAddr>, server: SocketAddr, now: Instant) -> Vec<PortLease> {
        std::iter::from_fn(|| ports.lease(source, server, now)).collect()
    }

    #[test]
    fn each_port_is_leased_once_to_each_source_and_server() {
        let (ports, now) = (Ports::new(RANGE), Instant::now());
        let leases = all(&ports, source(1), server(1), now);
        let numbers: HashSet<_> = leases.iter().map(PortLease::port).collect();
        assert_eq!(numbers, RANGE.collect());
        let others =
            [(source(2), server(1)), (source(1), server(2)), (source(1), ([192, 0, 2, 1], 80).into())];
        for (source, server) in others {
            assert_eq!(all(&ports, source, server, now).len(), 100, "{source:?} {server}");
        }
    }

    #[test]
    fn a_source_that_the_kernel_chooses_may_be_any() {
        let (ports, now) = (Ports::new(RANGE), Instant::now());
        let from: Vec<_> = (0..30).map(|_| ports.lease(source(1), server(1), now).unwrap()).collect();
        let any = all(&ports, None, server(1), now);
        assert_eq!(any.len(), 70, "those of a source are none");
        assert_eq!(all(&ports, source(2), server(1), now).len(), 30, "those without one may be any source's");
        drop((from, any));
        assert_eq!(all(&ports, source(2), server(1), now).len(), 100);
        assert_eq!(ports.lease(None, server(2), now).map(|_| ()), Some(()), "another server's are others");
    }

    #[test]
    fn a_name_rests_once_its_connection_may_have_had_no_socket() {
        let (ports, now) = (Ports::new(10_000..=10_000), Instant::now());
        let lease = |now| ports.lease(None, server(1), now);
        drop(lease(now).unwrap());
        let again = lease(now).expect("the kernel knows of a connection that was short");
        let end = now + SHORT;
        again.give_back(end);
        std::mem::forget(again);
        assert!(lease(end + REST - Duration::from_millis(1)).is_none(), "it rests");
        assert!(lease(end + REST).is_some());
    }

    #[test]
    fn names_of_before_are_taken_until_they_are_given_back() {
        let (ports, now) = (Ports::new(10_000..=10_001), Instant::now());
        let restore = |port, server| ports.restore([10, 0, 0, 1].into(), port, server, now);
        assert!(
            restore(9_999, server(1)).is_none() && restore(10_002, server(1)).is_none(),
            "not of the range"
        );
        let restored = restore(10_001, server(1)).unwrap();
        assert!(restore(10_001, server(1)).is_none(), "twice the same");
        assert_eq!((restored.port(), ports.lease(None, server(1), now).unwrap().port()), (10_001, 10_000));
        drop(restored);
        assert_eq!(ports.lease(None, server(1), now).unwrap().port(), 10_000, "it rests");
        assert_eq!(ports.lease(None, server(1), now + REST * 2).map(|_| ()), Some(()));
    }

    #[test]
    fn memory_is_bounded_and_comes_back() {
        let (ports, now) = (Ports::new(RANGE), Instant::now());
        let server = |number: usize| SocketAddr::from(([192, 0, (number >> 8) as u8, number as u8], 443));
        let leases: Vec<_> =
            (0..PAIRS).map(|number| ports.lease(None, server(number), now).unwrap()).collect();
        assert!(ports.lease(None, server(PAIRS), now).is_none(), "more servers than there is room for");
        assert!(ports.lease(None, server(1), now).is_some());
        drop(leases);
        assert!(ports.lease(None, server(PAIRS), now).is_some());
        assert_eq!(ports.lock().pairs.len(), PAIRS);
    }

    proptest! {
        #[test]
        fn the_first_free_bit_is_found(taken in proptest::collection::vec(any::<u64>(), 1..5), other in any::<u64>(), first in 0usize..320) {
            let first = first % (taken.len() * 64);
            let mut others = vec![0; taken.len()];
            others[0] = other;
            let is_free = |at: &usize| (taken[at / 64] | others[at / 64]) >> (at % 64) & 1 == 0;
            let expected = (first..taken.len() * 64).chain(0..first).find(is_free);
            prop_assert_eq!(first_free(&[&taken, &others], first), expected);
        }

        /// A model: the set of names that are leased or rest.
        #[test]
        fn no_name_is_leased_twice(steps in proptest::collection::vec((0u8..3, 1u8..3, any::<bool>(), 0u64..40), 1..400)) {
            let (ports, begun) = (Ports::new(10_000..=10_007), Instant::now());
            let mut now = begun;
            let mut live: Vec<(Option<IpAddr>, SocketAddr, PortLease)> = Vec::new();
            let mut resting: Vec<(Instant, Option<IpAddr>, SocketAddr, u16)> = Vec::new();
            for (from, to, give_back, seconds) in steps {
                now += Duration::from_secs(seconds) / 4;
                resting.retain(|(until, ..)| *until > now);
                let (source, server) = (if from == 0 { None } else { source(from) }, server(to));
                if give_back && !live.is_empty() {
                    let (source, server, lease) = live.remove(usize::from(from) % live.len());
                    if now - lease.since >= SHORT {
                        resting.push((now + REST, source, server, lease.port()));
                    }
                    lease.give_back(now);
                    std::mem::forget(lease);
                    continue;
                }
                let taken: HashSet<u16> = live.iter().map(|(source, server, lease)| (*source, *server, lease.port()))
                    .chain(resting.iter().map(|(_, source, server, port)| (*source, *server, *port)))
                    .filter(|(s, to, _)| *to == server && (s.is_none() || source.is_none() || *s == source))
                    .map(|(.., port)| port)
                    .collect();
                match ports.lease(source, server, now) {
                    Some(lease) => {
                        prop_assert!(!taken.contains(&lease.port()), "{} is taken", lease.port());
                        live.push((source, server, lease));
                    }
                    None => prop_assert_eq!(taken.len(), 8),
                }
            }
        }
    }
}

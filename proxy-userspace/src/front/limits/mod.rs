//! How many connections may come in, and how fast from one source: one greedy or hostile client takes nobody down.
//!
//! A connection asks once, right after accept and before any work is done for it. Saying no costs a few atomic
//! operations and a lock for each of its networks, which it shares with few; being let in, the lock of the places of
//! those in inspection besides. Connections that are in are never affected.
//!
//! Sources are kept in memory only while they have connections, or while their rate must be remembered, by a keyed hash
//! of their addresses, and never printed.

mod places;
mod refused;
mod source_key;
mod sources;

use std::{
    fmt,
    num::NonZero,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use crate::{
    account::{ClientAddr, Occupied},
    config::{self, Ranges},
};
use places::{Place, Places};
pub use refused::Refused;
use source_key::{Source, SourceKey};
use sources::{Most, Sources};

/// The least for connections in inspection or handshake.
const MIN_PENDING: u32 = 64;

/// How many connections the machine has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// In all.
    pub connections: u32,
    /// Those with sockets of setu's: all but those on the wire.
    pub sockets: u32,
}

/// The limits, and what counts against them. All workers share one.
#[derive(Debug)]
pub struct Limits {
    bounds: RwLock<Arc<Bounds>>,
    open_now: AtomicU32,
    /// Of them, those with sockets of setu's.
    with_sockets: AtomicU32,
    places: Places,
    sources: Sources,
}

/// How many there may be.
#[derive(Debug)]
struct Bounds {
    connections: u32,
    sockets: u32,
    pending: u32,
    per_source: Option<NonZero<u32>>,
    per_source_rate: Option<NonZero<u32>>,
    exempt: Ranges,
}

impl Bounds {
    fn new(config: &config::Limits, possible: Room) -> Self {
        let connections =
            config.connections.map_or(possible.connections, |wanted| wanted.get().min(possible.connections));
        let sockets = possible.sockets.min(connections);
        let pending = config.pending.map_or((sockets / 4).max(MIN_PENDING), NonZero::get);
        Self {
            connections,
            sockets,
            pending: pending.min(sockets),
            per_source: config.per_source,
            per_source_rate: config.per_source_rate,
            exempt: config.exempt.clone(),
        }
    }
}

/// A connection that was let in. Dropping it makes room for another.
#[derive(Debug)]
pub struct Permit {
    limits: Arc<Limits>,
    /// Whether it is counted among all, and among those with sockets.
    counted: bool,
    has_sockets: bool,
    place: Option<Arc<Place>>,
    /// What it is counted against.
    sources: Vec<SourceKey>,
    pending: bool,
}

/// Tells that a client has spoken.
#[derive(Debug, Clone)]
pub struct Voice {
    limits: Arc<Limits>,
    place: Option<Arc<Place>>,
}

impl Voice {
    /// It has: its place is not taken away any more.
    pub fn heard(&self) {
        if let Some(place) = &self.place {
            self.limits.places.heard(place);
        }
    }

    /// Ends when the client was silent for so long that its place was given to another.
    pub async fn crowded_out(&self) {
        match &self.place {
            Some(place) => place.crowded_out().await,
            None => std::future::pending().await,
        }
    }
}

impl Limits {
    /// Nothing is counted yet. There are no more than `possible`, whatever the configuration says.
    #[must_use]
    pub fn new(config: &config::Limits, possible: Room) -> Self {
        Self {
            bounds: RwLock::new(Arc::new(Bounds::new(config, possible))),
            open_now: AtomicU32::new(0),
            with_sockets: AtomicU32::new(0),
            places: Places::default(),
            sources: Sources::new(),
        }
    }

    /// Other limits from now on. What is counted stays: connections that are in are not affected, and where there are
    /// more than the new limits allow, nobody is let in until some have ended.
    pub fn change(&self, config: &config::Limits, possible: Room) {
        *self.bounds.write().unwrap_or_else(PoisonError::into_inner) =
            Arc::new(Bounds::new(config, possible));
    }

    fn bounds(&self) -> Arc<Bounds> {
        self.bounds.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets a connection in whose client is known at accept.
    ///
    /// # Errors
    /// The limit that it would break.
    pub fn admit(self: &Arc<Self>, client: &ClientAddr, now: Instant) -> Result<Permit, Refused> {
        // First of all the source pays: else there would be no end to the attempts of who is refused.
        let mut permit = self.permit();
        permit.charge(client, now)?;
        permit.take_place()?;
        Ok(permit)
    }

    /// Lets a connection in whose client is not known before its PROXY header is read: [`Permit::charge`] then says
    /// whose it is.
    ///
    /// # Errors
    /// The limit that it would break.
    pub fn admit_unknown(self: &Arc<Self>) -> Result<Permit, Refused> {
        let mut permit = self.permit();
        permit.take_place()?;
        Ok(permit)
    }

    /// Counts a connection on the wire that was in before this process was, whatever the limits are.
    pub(crate) fn adopt(self: &Arc<Self>, client: &ClientAddr, now: Instant) -> Permit {
        let mut permit = self.permit();
        self.open_now.fetch_add(1, Ordering::Relaxed);
        permit.counted = true;
        // What its source has too many of is not counted for it.
        let _ = permit.charge(client, now);
        permit.settled();
        permit
    }

    /// One for which nothing is counted yet. Its drop counts down what was counted up.
    fn permit(self: &Arc<Self>) -> Permit {
        Permit {
            limits: self.clone(),
            counted: false,
            has_sockets: false,
            place: None,
            sources: Vec::new(),
            pending: true,
        }
    }

    /// Forgets sources that have no connection and whose rate no longer matters. To be called now and then.
    pub fn sweep(&self, now: Instant) {
        self.sources.sweep(now);
    }

    /// Connections that may be in at once.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.bounds().connections
    }

    /// Connections that are in.
    #[must_use]
    pub fn open_now(&self) -> u32 {
        self.open_now.load(Ordering::Relaxed)
    }

    /// Connections that may be in inspection or handshake at once.
    #[must_use]
    pub fn pending(&self) -> u32 {
        self.bounds().pending
    }

    /// Connections in inspection or handshake.
    #[must_use]
    pub fn pending_now(&self) -> u32 {
        self.places.taken()
    }

    /// Sources in memory.
    #[must_use]
    pub fn sources_now(&self) -> usize {
        self.sources.len()
    }
}

impl Permit {
    /// Counts the connection against its source.
    ///
    /// # Errors
    /// The limit that it would break. The permit is to be dropped then.
    pub fn charge(&mut self, client: &ClientAddr, now: Instant) -> Result<(), Refused> {
        let ip = client.expose().ip();
        let bounds = self.limits.bounds();
        if !self.sources.is_empty() || bounds.exempt.contains(ip) {
            return Ok(());
        }
        let most = Most {
            open: bounds.per_source,
            rate: bounds.per_source_rate,
            // Who is on the wire is in nobody's way, but nobody knows beforehand who goes there.
            connections: bounds.sockets,
            places: bounds.pending,
            left: bounds.pending.saturating_sub(self.limits.places.taken()),
        };
        for source in Source::of(ip) {
            self.sources.push(self.limits.sources.charge(source, &most, now)?);
        }
        Ok(())
    }

    fn take_place(&mut self) -> Result<(), Refused> {
        let bounds = self.limits.bounds();
        if !increase(&self.limits.open_now, bounds.connections) {
            return Err(Refused::Total);
        }
        self.counted = true;
        if !increase(&self.limits.with_sockets, bounds.sockets) {
            return Err(Refused::Total);
        }
        self.has_sockets = true;
        self.place = self.limits.places.take(bounds.pending);
        if self.place.is_some() { Ok(()) } else { Err(Refused::Pending) }
    }

    /// Through which it is told that the client has spoken.
    #[must_use]
    pub fn voice(&self) -> Voice {
        Voice { limits: self.limits.clone(), place: self.place.clone() }
    }

    /// The connection goes on without sockets of setu's.
    pub(crate) fn without_sockets(&mut self) {
        if std::mem::take(&mut self.has_sockets) {
            self.limits.with_sockets.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Inspection and handshake are over.
    pub fn settled(&mut self) {
        if let Some(place) = self.place.take() {
            self.limits.places.give_back(&place);
        }
        if std::mem::take(&mut self.pending) {
            for source in &self.sources {
                self.limits.sources.settle(*source);
            }
        }
    }
}

/// With what else the connection occupies.
impl<T: fmt::Debug + Send + Sync> Occupied for (Permit, T) {
    fn without_sockets(&mut self) {
        self.0.without_sockets();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.settled();
        self.without_sockets();
        for source in &self.sources {
            self.limits.sources.release(*source);
        }
        if self.counted {
            self.limits.open_now.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Adds one, unless that would be more than `limit`.
fn increase(count: &AtomicU32, limit: u32) -> bool {
    let add = |count| if count < limit { Some(count + 1) } else { None };
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, Ipv6Addr},
        thread,
        time::Duration,
    };

    use proptest::prelude::*;

    use super::*;

    /// Limits by connections, per source, rate and pending; 0 is none.
    fn limits(connections: u32, per_source: u32, rate: u32, pending: u32) -> Arc<Limits> {
        let config = config::Limits {
            connections: NonZero::new(connections),
            per_source: NonZero::new(per_source),
            per_source_rate: NonZero::new(rate),
            exempt: Ranges::new(vec!["192.0.2.0/24".parse().unwrap()]),
            pending: NonZero::new(pending),
            kernel_bytes: None,
        };
        Arc::new(Limits::new(&config, room(1 << 20)))
    }

    /// For connections that all have sockets.
    fn room(connections: u32) -> Room {
        Room { connections, sockets: connections }
    }

    fn v4(host: u32) -> ClientAddr {
        ClientAddr::new((Ipv4Addr::from_bits(0x0a00_0000 + host), 1000).into())
    }

    fn v6(high: u64, low: u64) -> ClientAddr {
        ClientAddr::new((Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)), 1000).into())
    }

    fn refused(limits: &Arc<Limits>, client: ClientAddr, now: Instant) -> Refused {
        limits.admit(&client, now).expect_err("let in")
    }

    #[test]
    fn the_total_is_kept_and_room_is_made() {
        let (limits, now) = (limits(2, 0, 0, 2), Instant::now());
        let (first, _second) = (limits.admit(&v4(1), now).unwrap(), limits.admit(&v4(2), now).unwrap());
        assert_eq!(refused(&limits, v4(3), now), Refused::Total);
        drop(first);
        assert!(limits.admit(&v4(3), now).is_ok());
    }

    #[test]
    fn who_is_on_the_wire_leaves_room_for_those_with_sockets() {
        let (unlimited, now) = (config::Config::load(None).unwrap().limits, Instant::now());
        let limits = Arc::new(Limits::new(&unlimited, Room { connections: 4, sockets: 2 }));
        let mut held: Vec<_> = (0..2).map(|source| limits.admit(&v4(source), now).unwrap()).collect();
        assert_eq!(refused(&limits, v4(8), now), Refused::Total);
        for permit in &mut held {
            permit.without_sockets();
            permit.without_sockets();
        }
        held.extend((2..4).map(|source| limits.admit(&v4(source), now).unwrap()));
        assert_eq!(limits.open_now(), 4);
        for permit in &mut held {
            permit.without_sockets();
        }
        assert_eq!(refused(&limits, v4(8), now), Refused::Total, "all places on the wire are taken");
        drop(held.pop());
        let _last = limits.admit(&v4(8), now).unwrap();
        drop(held);
        assert_eq!((limits.open_now(), limits.with_sockets.load(Ordering::Relaxed)), (1, 1));
    }

    #[test]
    fn other_limits_hold_for_those_who_come() {
        let (limits, now) = (limits(4, 2, 0, 4), Instant::now());
        let mut held: Vec<_> = (0..4).map(|source| limits.admit(&v4(source), now).unwrap()).collect();
        let lower =
            config::Limits { connections: NonZero::new(2), ..config::Config::load(None).unwrap().limits };
        limits.change(&lower, room(100));
        assert_eq!(limits.open_now(), 4);
        for _ in 0..2 {
            held.pop();
            assert_eq!(refused(&limits, v4(9), now), Refused::Total);
        }
        held.pop();
        assert!(limits.admit(&v4(9), now).is_ok());
        let one = config::Limits { per_source: NonZero::new(1), ..lower };
        limits.change(&one, room(100));
        assert_eq!(refused(&limits, v4(0), now), Refused::PerSource);
    }

    #[test]
    fn pending_ends_with_settled_or_drop() {
        let (limits, now) = (limits(10, 0, 0, 2), Instant::now());
        let (mut first, second) = (limits.admit(&v4(1), now).unwrap(), limits.admit(&v4(1), now).unwrap());
        for permit in [&first, &second] {
            permit.voice().heard();
        }
        assert_eq!(refused(&limits, v4(1), now), Refused::Pending);
        assert_eq!(limits.open_now(), 2);
        first.settled();
        first.settled();
        assert_eq!(limits.pending_now(), 1);
        let third = limits.admit(&v4(1), now).unwrap();
        drop((first, second, third));
        assert_eq!((limits.open_now(), limits.pending_now()), (0, 0));
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_network() {
        let (limits, now) = (limits(100, 1, 0, 100), Instant::now());
        let _four = limits.admit(&v4(1), now).unwrap();
        let mapped = ClientAddr::new("[::ffff:10.0.0.1]:7".parse().unwrap());
        assert_eq!(refused(&limits, mapped, now), Refused::PerSource);
        let _six = limits.admit(&v6(1, 1), now).unwrap();
        assert_eq!(refused(&limits, v6(1, u64::MAX), now), Refused::PerSource);
        let _others = [limits.admit(&v4(2), now).unwrap(), limits.admit(&v6(2, 1), now).unwrap()];
        // The addresses, and the networks that they are in.
        let counted = limits.sources_now();
        assert_eq!(counted, 2 + 1 + 2 + 1 + 1);
        let exempt = ClientAddr::new("192.0.2.9:1".parse().unwrap());
        let _exempt = [limits.admit(&exempt, now).unwrap(), limits.admit(&exempt, now).unwrap()];
        assert_eq!(limits.sources_now(), counted);
    }

    #[test]
    fn a_source_leaves_places_to_others() {
        let (limits, now) = (limits(1000, 0, 0, 100), Instant::now());
        let greedy: Vec<_> = (0..200).map_while(|_| limits.admit(&v4(1), now).ok()).collect();
        // As many as were left to others.
        assert_eq!(greedy.len(), 50);
        let neighbour = limits.admit(&v4(2), now).unwrap();
        let others: Vec<_> = (1..100).map(|other| limits.admit(&v4(1000 * other), now).unwrap()).collect();
        let others: Vec<_> = others.into_iter().chain([neighbour]).collect();
        assert_eq!(limits.pending_now(), 100, "the silent of the first have given up theirs");
        for other in &others {
            other.voice().heard();
        }
        assert_eq!(refused(&limits, v4(1_000_000), now), Refused::Pending);
    }

    /// Who has spoken stays: on a small machine two networks that speak would have all places.
    #[test]
    fn networks_that_speak_leave_places_to_others() {
        let (limits, now) = (limits(1000, 0, 0, 341), Instant::now());
        let mut greedy = Vec::new();
        for at in 0..2_000 {
            // Addresses of two /24s, and /64s of a /48.
            let all = [v4(at % 100), v4(256 + at % 100), v6(0x2001_0db8_0001_0000 + u64::from(at), 1)];
            for client in all {
                if let Ok(permit) = limits.admit(&client, now) {
                    permit.voice().heard();
                    greedy.push(permit);
                }
            }
        }
        assert!(greedy.len() > 200 && limits.pending_now() <= 341 * 6 / 7 + 3, "{}", limits.pending_now());
        assert!(limits.admit(&v4(70_000), now).is_ok());
    }

    #[test]
    fn no_network_has_more_than_half() {
        let (limits, now) = (limits(2_000, 4_096, 0, 2_000), Instant::now());
        let mut held = Vec::new();
        for at in 0..4_000 {
            if let Ok(mut permit) = limits.admit(&v6(0x2001_0db8_0001_0000 + at, 1), now) {
                permit.settled();
                held.push(permit);
            }
        }
        assert_eq!(held.len(), 1_000);
        assert!(limits.admit(&v6(0x2001_0db8_0002_0000, 1), now).is_ok());
    }

    #[test]
    fn who_is_refused_pays_as_well() {
        let (limits, now) = (limits(1, 0, 1, 1), Instant::now());
        let _one = limits.admit(&v4(1), now).unwrap();
        for _ in 0..10 {
            assert_eq!(refused(&limits, v4(70_000), now), Refused::Total);
        }
        assert_eq!(refused(&limits, v4(70_000), now), Refused::Rate);
    }

    #[test]
    fn a_site_is_not_as_many_clients_as_it_has_networks() {
        let (limits, now) = (limits(1 << 20, 10, 0, 1 << 20), Instant::now());
        let admit = |network: u64| limits.admit(&v6(0x2001_0db8_0001_0000 + network, 1), now).ok();
        let held: Vec<_> =
            (0..65_536).flat_map(|network| (0..10).filter_map(move |_| admit(network))).collect();
        assert_eq!(held.len(), 160, "sixteen clients' worth");
        assert!(limits.admit(&v6(0x2001_0db8_0002_0000, 1), now).is_ok());
        let held: Vec<_> = (0..2_560).filter_map(|at| limits.admit(&v4(at % 256), now).ok()).collect();
        assert_eq!(held.len(), 160);
        assert!(limits.admit(&v4(256), now).is_ok());
    }

    #[test]
    fn the_client_behind_a_proxy_is_charged_once_it_is_known() {
        let (limits, now) = (limits(100, 1, 0, 100), Instant::now());
        let (mut first, mut second) = (limits.admit_unknown().unwrap(), limits.admit_unknown().unwrap());
        assert_eq!(first.charge(&v4(1), now), Ok(()));
        assert_eq!(first.charge(&v4(1), now), Ok(()), "twice is once");
        assert_eq!(second.charge(&v4(1), now), Err(Refused::PerSource));
        drop((first, second));
        assert_eq!((limits.open_now(), limits.pending_now(), limits.sources_now()), (0, 0, 0));
    }

    #[test]
    fn many_threads_keep_the_counts() {
        let (limits, now) = (limits(64, 8, 0, 32), Instant::now());
        thread::scope(|scope| {
            for number in 0..8 {
                let limits = &limits;
                scope.spawn(move || {
                    let mut held = Vec::new();
                    for step in 0..20_000 {
                        if let Ok(mut permit) = limits.admit(&v4((number + step) % 16), now) {
                            if step % 3 > 0 {
                                permit.settled();
                            }
                            held.push(permit);
                        }
                        assert!(limits.open_now() <= 64 && limits.pending_now() <= 32);
                        if step % 5 > 1 {
                            held.pop();
                        }
                    }
                });
            }
        });
        assert_eq!((limits.open_now(), limits.pending_now(), limits.sources_now()), (0, 0, 0));
    }

    #[test]
    fn no_address_is_printed() {
        let (limits, now) = (limits(0, 1, 1, 0), Instant::now());
        let permit = limits.admit(&v4(1), now).unwrap();
        let text = format!("{permit:?}{limits:?}{}", refused(&limits, v4(1), now));
        assert!(text.contains("SourceKey(..)") && !text.contains(&0x0a00_0001_u32.to_string()), "{text}");
    }

    #[test]
    fn no_configuration_goes_beyond_what_is_possible() {
        let config = config::Config::load(None).unwrap().limits;
        let limits = Limits::new(&config, room(1000));
        assert_eq!((limits.connections(), limits.bounds().pending), (1000, 250));
        assert_eq!(Limits::new(&config, room(10)).bounds().pending, 10);
        assert_eq!(
            Limits::new(&config::Limits { connections: NonZero::new(5000), ..config }, room(1000))
                .connections(),
            1000
        );
    }

    /// A step of the model: a client comes, settles or goes, or time passes.
    #[derive(Debug, Clone)]
    enum Step {
        Admit(u32),
        Settle(usize),
        Leave(usize),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0u32..4).prop_map(Step::Admit),
            2 => (0usize..64).prop_map(Step::Settle),
            3 => (0usize..64).prop_map(Step::Leave),
            1 => (1u64..400).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Against a model that counts naively, with a bucket of tokens in thousandths.
        #[test]
        fn decisions_are_those_of_a_naive_model(steps in prop::collection::vec(step(), 1..400)) {
            const TOTAL: usize = 12;
            const PENDING: usize = 6;
            const PER_SOURCE: usize = 5;
            const RATE: u64 = 1;
            let limits = limits(TOTAL as u32, PER_SOURCE as u32, RATE as u32, PENDING as u32);
            let mut now = Instant::now();
            let mut held: Vec<(u32, bool, Permit)> = Vec::new();
            let mut tokens = [RATE * 10_000; 4];
            for step in steps {
                match step {
                    Step::Wait(millis) => {
                        now += Duration::from_millis(millis);
                        for tokens in &mut tokens {
                            *tokens = (*tokens + millis * RATE).min(RATE * 10_000);
                        }
                    }
                    Step::Settle(at) if at < held.len() => {
                        held[at].1 = false;
                        held[at].2.settled();
                    }
                    Step::Leave(at) if at < held.len() => drop(held.swap_remove(at)),
                    Step::Settle(_) | Step::Leave(_) => {}
                    Step::Admit(source) => {
                        let pending = held.iter().filter(|(_, pending, _)| *pending).count();
                        let of_source = held.iter().filter(|(other, ..)| *other == source).count();
                        let tokens = &mut tokens[source as usize];
                        let may_pay = *tokens >= 1000;
                        *tokens -= if may_pay { 1000 } else { 0 };
                        let expected = if !may_pay {
                            Err(Refused::Rate)
                        } else if of_source == PER_SOURCE {
                            Err(Refused::PerSource)
                        } else if held.len() == TOTAL {
                            Err(Refused::Total)
                        } else {
                            if pending == PENDING {
                                // All are silent: the oldest of them gives up its place.
                                let oldest = held.iter_mut().filter(|(_, pending, _)| *pending);
                                oldest.min_by_key(|(.., permit)| permit.place.as_ref().map(|place| place.number())).unwrap().1 = false;
                            }
                            Ok(())
                        };
                        let result = limits.admit(&v4(source), now);
                        prop_assert_eq!(result.as_ref().map(drop).map_err(|refused| *refused), expected);
                        if let Ok(permit) = result {
                            held.push((source, true, permit));
                        }
                    }
                }
                prop_assert_eq!(limits.open_now() as usize, held.len());
                let pending = held.iter().filter(|(_, pending, _)| *pending).count();
                prop_assert_eq!(limits.pending_now() as usize, pending);
            }
            drop(held);
            limits.sweep(now + Duration::from_secs(10));
            prop_assert_eq!((limits.open_now(), limits.pending_now(), limits.sources_now()), (0, 0, 0));
        }
    }
}

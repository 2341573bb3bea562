//! What each source holds and how fast it comes.
//!
//! The table is split into shards with a lock each, so that workers seldom wait for each other. It remembers a source
//! only while it has connections or its rate matters, and is bounded by the number of connections and [`REMEMBERED`].

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    num::NonZero,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    refused::Refused,
    source_key::{Keys, Source, SourceKey},
};

/// Parts of the table.
const SHARDS: usize = 64;
/// Sources without connections whose rate a shard remembers. Whoever has more addresses than this is not stopped by a
/// rate for each.
const REMEMBERED: usize = 1024;
/// A source that was quiet may make as many connections at once as its rate gives in this time.
const BURST: Duration = Duration::from_secs(10);

/// As many in inspection or handshake one client may have, however few places are free: a carrier's address is that of
/// many. The networks that it is in may have as many times that as they are clients, but no more than one part in so many
/// of all places: whoever has spoken stays, so that a few networks could take all.
const PENDING: u32 = 32;
const PART: u32 = 4;
/// No source has more than a half of all connections, if that is more than so many.
const HALF: u32 = 512;

/// What one client may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Most {
    /// Connections at once; `None` is no limit.
    pub(super) open: Option<NonZero<u32>>,
    /// New ones each second.
    pub(super) rate: Option<NonZero<u32>>,
    /// Connections of all.
    pub(super) connections: u32,
    /// Places in inspection or handshake, all of them and those that are left.
    pub(super) places: u32,
    pub(super) left: u32,
}

impl Most {
    /// Connections that a source may have at once.
    fn open(&self, source: Source) -> u32 {
        let all = (self.connections / 2).max(HALF);
        self.open.map_or(u32::MAX, |open| open.get().saturating_mul(source.shares).min(all))
    }

    /// Those in inspection or handshake: as many as there are places left, and of a network twice as many, so that one
    /// client does not keep its neighbours out.
    fn pending(&self, source: Source) -> u32 {
        let left = if source.shares == 1 { self.left } else { self.left.saturating_mul(2) };
        let least = PENDING.saturating_mul(source.shares).min((self.places / PART).max(PENDING));
        left.max(least)
    }
}

/// All sources.
#[derive(Debug)]
pub(super) struct Sources {
    keys: Keys,
    /// Chooses the shard. Its key is random (SipHash), as are those of the maps, so that nobody can choose addresses
    /// that collide.
    hasher: RandomState,
    shards: Vec<Mutex<Shard>>,
}

#[derive(Debug, Default)]
struct Shard {
    accounts: HashMap<SourceKey, Account>,
    /// How many of them have no connection.
    remembered: usize,
    /// The latest time that was passed in.
    latest: Option<Instant>,
}

#[derive(Debug)]
struct Account {
    open: u32,
    /// Of them, those in inspection or handshake.
    pending: u32,
    /// The source's debt is paid off then: each connection moves it on by the interval, and it is never more than
    /// [`BURST`] ahead. This is a token bucket in one number (the GCRA of ITU-T I.371).
    clear_at: Instant,
}

impl Sources {
    /// None yet.
    pub(super) fn new() -> Self {
        let keys = Keys::new(Instant::now());
        Self { keys, hasher: RandomState::new(), shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    /// Counts a new connection, which is in inspection; [`Self::settle`] of what is returned ends that, and
    /// [`Self::release`] the connection. What is refused has paid its rate all the same.
    pub(super) fn charge(&self, source: Source, most: &Most, now: Instant) -> Result<SourceKey, Refused> {
        let mut known = self.keys.of(source);
        // It may have an account from the time of an older key.
        let newest = known.next();
        let older = known.find(|key| self.shard(*key).accounts.contains_key(key));
        let Some(key) = older.or(newest) else { return Err(Refused::Total) };
        let mut shard = self.shard(key);
        let shard = &mut *shard;
        shard.latest = shard.latest.max(Some(now));
        let account = shard.accounts.entry(key).or_insert_with(|| {
            shard.remembered += 1;
            Account { open: 0, pending: 0, clear_at: now }
        });
        if let Some(rate) = most.rate {
            let interval = Duration::from_secs(1) / rate.get().saturating_mul(source.shares);
            let clear_at = account.clear_at.max(now) + interval;
            if clear_at - now > BURST {
                return Err(Refused::Rate);
            }
            account.clear_at = clear_at;
        }
        if account.open >= most.open(source) {
            return Err(Refused::PerSource);
        }
        if account.pending >= most.pending(source) {
            return Err(Refused::Pending);
        }
        if account.open == 0 {
            shard.remembered -= 1;
        }
        account.open += 1;
        account.pending += 1;
        Ok(key)
    }

    /// The end of inspection and handshake.
    pub(super) fn settle(&self, source: SourceKey) {
        if let Some(account) = self.shard(source).accounts.get_mut(&source) {
            account.pending -= 1;
        }
    }

    /// The end of a connection, which was settled.
    pub(super) fn release(&self, source: SourceKey) {
        self.shard(source).release(source);
    }

    /// Forgets sources that have no connection and whose rate no longer matters.
    pub(super) fn sweep(&self, now: Instant) {
        self.keys.renew(now);
        for shard in &self.shards {
            lock(shard).sweep(now);
        }
    }

    /// How many are in memory.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).accounts.len()).sum()
    }

    fn shard(&self, source: SourceKey) -> MutexGuard<'_, Shard> {
        let hash = self.hasher.hash_one(source);
        // The remainder is below SHARDS, whatever is cut off.
        lock(&self.shards[hash as usize % SHARDS])
    }
}

impl Shard {
    fn release(&mut self, source: SourceKey) {
        let Some(account) = self.accounts.get_mut(&source) else { return };
        account.open -= 1;
        if account.open > 0 {
            return;
        }
        if Some(account.clear_at) <= self.latest {
            self.accounts.remove(&source);
            return;
        }
        self.remembered += 1;
        if self.remembered > REMEMBERED {
            if let Some(latest) = self.latest {
                self.sweep(latest);
            }
            // Half, so that this is not done for each of the next connections.
            if self.remembered > REMEMBERED / 2 {
                self.accounts.retain(|_, account| account.open > 0);
                self.remembered = 0;
            }
        }
    }

    fn sweep(&mut self, now: Instant) {
        self.accounts.retain(|_, account| account.open > 0 || account.clear_at > now);
        self.remembered = self.accounts.values().filter(|account| account.open == 0).count();
        // What an attack made large does not stay so.
        if self.accounts.capacity() > 4 * self.accounts.len().max(REMEMBERED) {
            self.accounts.shrink_to_fit();
        }
    }
}

/// No panic can happen under a lock, but were there one, the counts would still be usable.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charge(sources: &Sources, host: u64, rate: u32, now: Instant) -> Result<SourceKey, Refused> {
        let ip = std::net::Ipv6Addr::from_bits(u128::from(host) << 64);
        let source = Source::of(ip.into()).next().unwrap();
        let most = Most { open: None, rate: NonZero::new(rate), connections: 0, places: 0, left: u32::MAX };
        sources.charge(source, &most, now)
    }

    /// Lets it go.
    fn end(sources: &Sources, source: SourceKey) {
        sources.settle(source);
        sources.release(source);
    }

    #[test]
    fn a_rate_allows_a_burst_and_then_its_pace() {
        let (sources, start) = (Sources::new(), Instant::now());
        let charge =
            |source, millis| charge(&sources, source, 2, start + Duration::from_millis(millis)).map(drop);
        assert_eq!((0..40).take_while(|_| charge(1, 0).is_ok()).count(), 20);
        assert_eq!(charge(1, 499), Err(Refused::Rate));
        assert_eq!(charge(1, 500), Ok(()));
        assert_eq!(charge(1, 501), Err(Refused::Rate));
        // A clock that reads earlier on another thread grants nothing.
        assert_eq!(charge(1, 0), Err(Refused::Rate));
        assert_eq!(charge(2, 0), Ok(()));
    }

    #[test]
    fn the_highest_rate_overflows_nothing() {
        let (sources, now) = (Sources::new(), Instant::now());
        assert!((0..1000).all(|_| charge(&sources, 1, u32::MAX, now).is_ok()));
    }

    #[test]
    fn sources_are_forgotten() {
        let (sources, now) = (Sources::new(), Instant::now());
        end(&sources, charge(&sources, 1, 1, now).unwrap());
        assert_eq!(sources.len(), 1, "its rate is remembered");
        sources.sweep(now + Duration::from_millis(999));
        assert_eq!(sources.len(), 1);
        sources.sweep(now + Duration::from_secs(1));
        assert_eq!(sources.len(), 0);
    }

    #[test]
    fn a_flood_of_sources_holds_a_bounded_amount() {
        let (sources, now) = (Sources::new(), Instant::now());
        charge(&sources, 1, 1, now).unwrap();
        for network in 0..4 * (SHARDS * REMEMBERED) as u64 {
            end(&sources, charge(&sources, network, 1, now).unwrap());
        }
        let count = sources.len();
        assert!(count <= SHARDS * REMEMBERED + 1, "{count}");
        assert!(count > SHARDS, "rates are remembered: {count}");
        sources.sweep(now + BURST);
        assert_eq!(sources.len(), 1, "what is open is never forgotten");
    }
}

//! Sources without their addresses: by a keyed hash, whose key is forgotten, so that no memory, dump or swap tells who
//! was there.

use std::{
    collections::VecDeque,
    fmt,
    hash::Hasher as _,
    net::IpAddr,
    sync::{PoisonError, RwLock},
    time::{Duration, Instant},
};

use rustix::rand::{GetRandomFlags, getrandom};
use siphasher::sip128::{Hasher128 as _, SipHasher13};
use zeroize::Zeroizing;

/// How long a key is used for new sources.
const AGE: Duration = Duration::from_secs(12 * 60 * 60);
/// Keys of which what they made is still found: a source that stays connected for longer than they are used begins anew.
const KEYS: usize = 4;

/// What counts as one client: an IPv4 address, or the /64 that an IPv6 host chooses its addresses from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    V4(u32),
    V6(u64),
}

/// A source as it is remembered.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SourceKey(u128);

/// The keys, the newest first.
pub(super) struct Keys(RwLock<VecDeque<Key>>);

struct Key {
    secret: Zeroizing<[u8; 16]>,
    until: Instant,
}

impl Source {
    pub(super) fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::V4(ip.to_bits()),
            // The rest of the 128 bits is the host's to choose (RFC 4291, section 2.5.4).
            IpAddr::V6(ip) => Self::V6((ip.to_bits() >> 64) as u64),
        }
    }
}

impl Keys {
    /// One, made now.
    pub(super) fn new(now: Instant) -> Self {
        Self(RwLock::new([Key::new(now)].into()))
    }

    /// What a source is called by each key, the newest first.
    pub(super) fn of(&self, source: Source) -> impl Iterator<Item = SourceKey> {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let hashed: Vec<_> = keys.iter().map(|key| key.hash(source)).collect();
        hashed.into_iter()
    }

    /// Makes a new one when it is time, and forgets the oldest. To be called now and then.
    pub(super) fn renew(&self, now: Instant) {
        let is_due = |keys: &VecDeque<Key>| keys.front().is_none_or(|key| now >= key.until);
        if is_due(&self.0.read().unwrap_or_else(PoisonError::into_inner)) {
            let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
            keys.push_front(Key::new(now));
            keys.truncate(KEYS);
        }
    }
}

impl Key {
    fn new(now: Instant) -> Self {
        let mut secret = Zeroizing::new([0; 16]);
        let mut filled = 0;
        while filled < secret.len() {
            // It waits for the machine's first randomness at boot; a signal may interrupt that, and nothing else can be.
            filled += getrandom(&mut secret[filled..], GetRandomFlags::empty()).unwrap_or(0);
        }
        Self { secret, until: now + AGE }
    }

    fn hash(&self, source: Source) -> SourceKey {
        let mut hasher = SipHasher13::new_with_key(&self.secret);
        match source {
            Source::V4(host) => hasher.write_u32(host),
            Source::V6(site) => hasher.write_u64(site),
        }
        SourceKey(hasher.finish128().as_u128())
    }
}

impl fmt::Debug for Source {
    /// A source is a client's address: it is not printed.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Source(..)")
    }
}

impl fmt::Debug for SourceKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SourceKey(..)")
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Keys(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_renewed_with_an_overlap() {
        let now = Instant::now();
        let keys = Keys::new(now);
        let of = |source| keys.of(Source::V4(source)).collect::<Vec<_>>();
        let first = of(1)[0];
        assert_ne!(first, of(2)[0]);
        keys.renew(now + AGE / 2);
        assert_eq!(of(1), [first]);
        for renewals in 1..KEYS as u32 {
            keys.renew(now + AGE * renewals);
            assert_eq!((of(1).len(), of(1).last()), (renewals as usize + 1, Some(&first)));
            assert_ne!(of(1)[0], first);
        }
        keys.renew(now + AGE * KEYS as u32);
        assert!(of(1).len() == KEYS && !of(1).contains(&first), "forgotten");
    }
}

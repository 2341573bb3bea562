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

use siphasher::sip128::{Hasher128 as _, SipHasher13};
use zeroize::Zeroizing;

use crate::sys;

/// How long a key is used for new sources.
const AGE: Duration = Duration::from_secs(12 * 60 * 60);
/// Keys of which what they made is still found: a source that stays connected for longer than they are used begins anew.
const KEYS: usize = 4;

/// A network of which connections are counted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Source {
    /// Its bits, the others are 0. IPv4 as mapped into IPv6.
    bits: u128,
    /// How many of them count.
    prefix: u8,
    /// How many times as much as one client it may have.
    pub(super) shares: u32,
}

/// In which networks an address is counted, by the length of their prefix, and how many clients' shares each has. An IPv4
/// address may be that of a carrier, behind which thousands are: the limits for one are made for that, and the /24 has
/// those of sixteen, for floods from a rented block. An IPv6 host chooses its addresses in a /64 (RFC 4291, section
/// 2.5.4), a home has a /56 of them, a site a /48 (RFC 6177): who has more networks does not get as much more.
const V4: [(u8, u32); 2] = [(32, 1), (24, 16)];
const V6: [(u8, u32); 3] = [(64, 1), (56, 4), (48, 16)];
/// What is before an IPv4 address that is mapped into IPv6.
const MAPPED: u8 = 96;

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
    /// Those of an address, the smallest first.
    pub(super) fn of(ip: IpAddr) -> impl Iterator<Item = Self> {
        let (bits, before, networks) = match ip {
            IpAddr::V4(ip) => (ip.to_ipv6_mapped().to_bits(), MAPPED, &V4[..]),
            IpAddr::V6(ip) => (ip.to_bits(), 0, &V6[..]),
        };
        networks.iter().map(move |(prefix, shares)| {
            let prefix = before + prefix;
            Self { bits: bits & u128::MAX.unbounded_shl(u32::from(128 - prefix)), prefix, shares: *shares }
        })
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
        let mut hashed = [None; KEYS];
        for (hashed, key) in hashed.iter_mut().zip(keys.iter()) {
            *hashed = Some(key.hash(source));
        }
        hashed.into_iter().flatten()
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
        Self { secret: sys::random(), until: now + AGE }
    }

    fn hash(&self, source: Source) -> SourceKey {
        let mut hasher = SipHasher13::new_with_key(&self.secret);
        hasher.write_u128(source.bits);
        hasher.write_u8(source.prefix);
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
    fn neighbours_share_networks() {
        let in_common = |one: &str, other: &str| {
            let of = |ip: &str| Source::of(ip.parse().unwrap()).collect::<Vec<_>>();
            let (one, other) = (of(one), of(other));
            one.iter().filter(|network| other.contains(network)).count()
        };
        for (one, other, networks) in [
            ("192.0.2.1", "192.0.2.1", 2),
            ("192.0.2.1", "192.0.2.200", 1),
            ("192.0.2.1", "192.0.3.1", 0),
            ("2001:db8:1:200::1", "2001:db8:1:200:ffff::9", 3),
            ("2001:db8:1:200::1", "2001:db8:1:2ff::1", 2),
            ("2001:db8:1:200::1", "2001:db8:1:300::1", 1),
            ("2001:db8:1:200::1", "2001:db8:2:200::1", 0),
        ] {
            assert_eq!(in_common(one, other), networks, "{one} {other}");
        }
    }

    #[test]
    fn keys_are_renewed_with_an_overlap() {
        let now = Instant::now();
        let keys = Keys::new(now);
        let of = |host: u32| {
            let source = Source::of(std::net::Ipv4Addr::from_bits(host).into()).next().unwrap();
            keys.of(source).collect::<Vec<_>>()
        };
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

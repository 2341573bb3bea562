//! What is known of one name, and for how long it is worth something. Time is passed in.

use std::time::{Duration, Instant};

use super::answer::{Addresses, NameFailure};

/// Whatever a TTL says, an answer is used for at least and at most this. Less would make the resolver a part of every
/// connection, more would miss servers that move.
const TTL_MIN: Duration = Duration::from_secs(5);
pub(super) const TTL_MAX: Duration = Duration::from_secs(60 * 60);
/// How long an answer serves when no better one comes.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);
/// After a failure the name is not asked for until this is over, at first and at most.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// At most as long as nothing is known: a machine that has just started serves nobody until then.
const FIRST_PAUSE_MAX: Duration = Duration::from_secs(5);

/// What is known of one name.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Empty until the first answer.
    pub(super) addresses: Addresses,
    pub(super) learned: Instant,
    pub(super) expires: Instant,
    /// It is to be looked up again, although it is good for longer.
    pub(super) doubted: bool,
    /// The last lookup's, with the end and the length of the pause after it.
    pub(super) failure: Option<(NameFailure, Instant, Duration)>,
    /// Names of the configuration stay, and are kept fresh.
    pub(super) configured: bool,
    pub(super) used: Instant,
}

/// What a table says of a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known {
    Fresh(Addresses),
    /// Better than nothing; `ask` for a better one, and wait for it a little.
    Stale {
        addresses: Addresses,
        ask: bool,
    },
    Failed(NameFailure),
    Nothing,
}

impl Entry {
    pub(super) fn new(configured: bool, now: Instant) -> Self {
        Self {
            addresses: [].into(),
            learned: now,
            expires: now,
            doubted: false,
            failure: None,
            configured,
            used: now,
        }
    }

    pub(super) fn learn(&mut self, addresses: Addresses, ttl: Duration, now: Instant) {
        self.addresses = addresses;
        self.learned = now;
        self.expires = now + ttl.clamp(TTL_MIN, TTL_MAX);
        self.doubted = false;
        self.failure = None;
    }

    pub(super) fn fail(&mut self, failure: NameFailure, now: Instant) {
        let most = if self.addresses.is_empty() { FIRST_PAUSE_MAX } else { PAUSE_MAX };
        let pause = self.failure.map_or(PAUSE, |(_, _, pause)| (pause * 2).min(most));
        self.failure = Some((failure, now + pause, pause));
    }

    pub(super) fn known(&self, now: Instant) -> Known {
        let paused = self.failure.filter(|(_, until, _)| now < *until).map(|(failure, _, _)| failure);
        if !self.addresses.is_empty() {
            if now < self.expires {
                return Known::Fresh(self.addresses.clone());
            }
            if now < self.learned + STALE {
                let ask = paused.is_none() && !self.configured;
                return Known::Stale { addresses: self.addresses.clone(), ask };
            }
        }
        paused.map_or(Known::Nothing, Known::Failed)
    }

    /// Whether it may be looked up again before its time.
    pub(super) fn may_renew(&self, now: Instant) -> bool {
        now >= self.learned + TTL_MIN && self.failure.is_none_or(|(_, until, _)| now >= until)
    }

    /// When a name of the configuration is to be looked up again: before it expires, so that nobody waits.
    pub(super) fn refresh_at(&self) -> Instant {
        match self.failure {
            Some((_, until, _)) => until,
            None if self.doubted => self.learned,
            None => self.learned + (self.expires - self.learned).mul_f64(0.8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn addresses(last: u8) -> Addresses {
        [[192, 0, 2, last].into()].into()
    }

    #[test]
    fn a_ttl_is_kept_within_bounds() {
        let now = Instant::now();
        let mut entry = Entry::new(false, now);
        assert_eq!(entry.known(now), Known::Nothing);
        for (ttl, fresh_for) in [(0, TTL_MIN), (60, SECOND * 60), (1_000_000, TTL_MAX)] {
            entry.learn(addresses(1), SECOND * ttl, now);
            assert_eq!(entry.known(now + fresh_for - SECOND), Known::Fresh(addresses(1)));
            let stale = Known::Stale { addresses: addresses(1), ask: true };
            assert_eq!(entry.known(now + fresh_for), stale);
        }
    }

    #[test]
    fn stale_answers_serve_through_failures_but_not_for_ever() {
        let now = Instant::now();
        let mut entry = Entry::new(false, now);
        entry.learn(addresses(1), SECOND * 60, now);
        entry.fail(NameFailure::NoSuchName, now + SECOND * 50);
        assert_eq!(entry.known(now + SECOND * 50), Known::Fresh(addresses(1)));
        let later = now + STALE - SECOND;
        entry.fail(NameFailure::Unanswered, later);
        // It was just asked for: no need to ask again.
        assert_eq!(entry.known(later), Known::Stale { addresses: addresses(1), ask: false });
        assert_eq!(entry.known(now + STALE), Known::Failed(NameFailure::Unanswered));
        assert_eq!(entry.known(now + STALE + PAUSE_MAX), Known::Nothing);
    }

    #[test]
    fn failures_are_remembered_longer_and_longer() {
        let mut now = Instant::now();
        let mut entry = Entry::new(false, now);
        for _ in 0..10 {
            entry.fail(NameFailure::Unanswered, now);
            let pause = entry.refresh_at() - now;
            assert!(pause <= FIRST_PAUSE_MAX, "{pause:?} while nothing is known");
            now += pause;
        }
        entry.learn(addresses(1), SECOND, now);
        now += STALE;
        let mut before = Duration::ZERO;
        for _ in 0..10 {
            entry.fail(NameFailure::NoSuchName, now);
            let pause = entry.refresh_at() - now;
            assert!(pause > before || pause == PAUSE_MAX, "{pause:?} after {before:?}");
            assert_eq!(entry.known(now + pause - SECOND / 2), Known::Failed(NameFailure::NoSuchName));
            assert_eq!(entry.known(now + pause), Known::Nothing);
            (before, now) = (pause, now + pause);
        }
        assert_eq!(before, PAUSE_MAX);
        entry.learn(addresses(2), SECOND * 60, now);
        entry.fail(NameFailure::NoSuchName, now);
        assert_eq!(entry.refresh_at(), now + PAUSE);
    }

    #[test]
    fn configured_names_are_refreshed_before_they_expire_and_never_waited_for() {
        let now = Instant::now();
        let mut entry = Entry::new(true, now);
        assert!(entry.refresh_at() <= now);
        entry.learn(addresses(1), SECOND * 100, now);
        assert_eq!(entry.refresh_at(), now + SECOND * 80);
        let stale = Known::Stale { addresses: addresses(1), ask: false };
        assert_eq!(entry.known(now + SECOND * 100), stale);
        entry.doubted = true;
        assert!(entry.refresh_at() <= now);
        assert_eq!(entry.known(now), Known::Fresh(addresses(1)), "until there is a better answer");
    }
}

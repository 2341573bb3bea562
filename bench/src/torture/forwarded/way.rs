//! What forwarders do to frames, and what hosts agree on.

use std::{fmt, time::Duration};

use setu_tests::peers::Random;

use super::super::conditions::Die;

/// How bad the way is; of a thousand frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Profile {
    name: &'static str,
    pub(crate) lost: u32,
    /// Come twice, or more often.
    pub(crate) repeated: u32,
    /// Come after later ones.
    pub(crate) late: u32,
    /// A repeated frame comes so often at most.
    copies: u64,
    /// Lost of those that setu's own sockets send: while they still answer for what they have sent, flows are on the wire
    /// already.
    own: u32,
}

const CLEAN: Profile = Profile { name: "clean", lost: 0, repeated: 0, late: 0, copies: 1, own: 0 };
const BAD: Profile = Profile { name: "1/1/3 %", lost: 10, repeated: 10, late: 30, copies: 2, own: 0 };
const PROFILES: [Profile; 5] = [
    CLEAN,
    BAD,
    Profile { name: "5/2/10 %", lost: 50, repeated: 20, late: 100, copies: 2, own: 0 },
    Profile { name: "all repeated", lost: 0, repeated: 1_000, late: 100, copies: 3, own: 0 },
    Profile { name: "setu's own lost", lost: 0, repeated: 500, late: 100, copies: 2, own: 200 },
];

/// Of a thousand frames of a link. Where more are lost, ends without SACK need minutes for 2 MB, with no proxy between them
/// either: each lost segment is found by a timer of its own, and every timer waits twice as long as the one before, for no
/// round trip of a repeated segment can be measured (RFC 6298, section 5.7). With timestamps one can; but if the
/// acknowledgement is lost as well, what is measured is the time until the next one, half a minute.
const HARD: u32 = 10;
/// How long a late frame, and each repetition, is behind, microseconds: within a round trip, and after several.
const BEHIND: (u64, u64) = (50, 10_000);

/// The way between all hosts of a round, and what their TCP has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) profile: Profile,
    /// How long every frame takes from one host to the next.
    pub(crate) delay: Duration,
    pub(crate) ipv6: bool,
    pub(crate) timestamps: bool,
    pub(crate) sack: bool,
}

impl Way {
    /// Draws one, for messages or for streams.
    pub(crate) fn draw(die: &mut Die<'_>, bulk: bool) -> Self {
        let profile = die.one_of(&PROFILES);
        let delay = Duration::from_micros(die.one_of(&[0, 200, 1_000, 5_000]));
        let (ipv6, timestamps, sack) = (die.below(2) == 0, die.below(3) > 0, die.below(3) > 0);
        // A stream through setu's sockets would never come to the moment in which it goes on the wire.
        let is_hopeless = profile.lost.max(profile.own) > HARD && !sack || bulk && profile.own > 0;
        Self { profile: if is_hopeless { BAD } else { profile }, delay, ipv6, timestamps, sack }
    }

    /// What kinds of conditions these are, for counting.
    pub(crate) fn kinds(self) -> impl Iterator<Item = String> {
        let options = match (self.timestamps, self.sack) {
            (true, true) => "timestamps and SACK",
            (true, false) => "timestamps alone",
            (false, true) => "SACK alone",
            (false, false) => "neither timestamps nor SACK",
        };
        let family = if self.ipv6 { "IPv6" } else { "IPv4" };
        [format!("forwarders, {}", self.profile.name), family.to_owned(), options.to_owned()].into_iter()
    }
}

impl fmt::Display for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { profile, delay, ipv6, timestamps, sack } = self;
        write!(formatter, "{} delay={delay:?} ipv6={ipv6} timestamps={timestamps} sack={sack}", profile.name)
    }
}

/// Decides on frames of one direction of a link.
#[derive(Debug, Clone)]
pub(crate) struct Fate {
    random: Random,
    way: Way,
}

impl Fate {
    /// The same seed decides alike.
    pub(crate) fn new(way: Way, seed: u64) -> Self {
        Self { random: Random::new(seed), way }
    }

    /// After how long the next frame comes out, once for each time that it does; not at all, it is lost.
    /// `own`: one of setu's own sockets sent it.
    pub(crate) fn next(&mut self, own: bool) -> impl Iterator<Item = Duration> + use<> {
        let Way { profile, delay, .. } = self.way;
        let mut die = Die(&mut self.random);
        let mut comes = [None; 3];
        let happens = |die: &mut Die<'_>, thousandths: u32| die.below(1_000) < u64::from(thousandths);
        if !happens(&mut die, if own { profile.own.max(profile.lost) } else { profile.lost }) {
            let copies = if happens(&mut die, profile.repeated) { die.between(2, profile.copies) } else { 1 };
            for (number, copy) in comes.iter_mut().take(copies as usize).enumerate() {
                let behind = number > 0 || happens(&mut die, profile.late);
                let more = if behind { die.any_scale(BEHIND.0, BEHIND.1) } else { 0 };
                *copy = Some(delay + Duration::from_micros(more));
            }
        }
        comes.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(profile: Profile) -> Way {
        Way { profile, delay: Duration::from_millis(1), ipv6: false, timestamps: true, sack: true }
    }

    fn decide(profile: Profile, seed: u64, frames: usize) -> Vec<Vec<Duration>> {
        let mut fate = Fate::new(way(profile), seed);
        (0..frames).map(|_| fate.next(false).collect()).collect()
    }

    #[test]
    fn a_seed_decides_alike() {
        for profile in PROFILES {
            assert_eq!(decide(profile, 3, 1_000), decide(profile, 3, 1_000));
        }
        assert_ne!(decide(PROFILES[2], 3, 1_000), decide(PROFILES[2], 4, 1_000));
    }

    #[test]
    fn a_clean_way_is_only_long() {
        assert!(decide(CLEAN, 1, 10_000).iter().all(|comes| comes == &[Duration::from_millis(1)]));
    }

    #[test]
    fn frames_fare_as_the_profile_says() {
        const FRAMES: usize = 100_000;
        for profile in PROFILES {
            let decided = decide(profile, 9, FRAMES);
            let share = |is_so: &dyn Fn(&[Duration]) -> bool| {
                decided.iter().filter(|comes| is_so(comes)).count() * 1_000 / FRAMES
            };
            let is_late = |comes: &[Duration]| comes.first().is_some_and(|at| *at > Duration::from_millis(1));
            for (name, found, due) in [
                ("lost", share(&|comes| comes.is_empty()), profile.lost),
                (
                    "repeated",
                    share(&|comes| comes.len() > 1),
                    profile.repeated * (1_000 - profile.lost) / 1_000,
                ),
                ("late", share(&is_late), profile.late * (1_000 - profile.lost) / 1_000),
            ] {
                assert!(found.abs_diff(due as usize) <= 5, "{}: {name} {found}, not {due}", profile.name);
            }
            assert!(decided.iter().all(|comes| comes.len() as u64 <= profile.copies));
            let most = Duration::from_millis(1) + Duration::from_micros(BEHIND.1);
            assert!(decided.iter().flatten().all(|at| *at <= most));
        }
    }

    #[test]
    fn setus_own_are_lost_where_the_profile_says_so() {
        for profile in PROFILES {
            let mut fate = Fate::new(way(profile), 11);
            let lost = (0..10_000).filter(|_| fate.next(true).next().is_none()).count() / 10;
            assert!(lost.abs_diff(profile.own.max(profile.lost) as usize) <= 15, "{}: {lost}", profile.name);
        }
    }

    #[test]
    fn every_way_is_drawn() {
        let mut random = Random::new(5);
        let mut die = Die(&mut random);
        let ways: Vec<_> = (0..500).map(|_| Way::draw(&mut die, false)).collect();
        for profile in PROFILES {
            for (ipv6, timestamps, sack) in
                [(false, true, true), (true, true, true), (false, false, true), (true, true, false)]
            {
                let drawn = |way: &Way| {
                    (way.profile, way.ipv6, way.timestamps, way.sack) == (profile, ipv6, timestamps, sack)
                };
                let is_drawn = sack || profile.lost.max(profile.own) <= HARD;
                assert_eq!(ways.iter().any(drawn), is_drawn, "{profile:?} {ipv6} {timestamps} {sack}");
            }
        }
    }
}

//! What a round is played under. All of it follows from the round's seed, and the line that is printed holds all of it.

use std::fmt;

use setu_tests::peers::Random;

use super::{
    forwarded::way::{Profile, Way},
    pattern::mix,
};

/// A queue before a device of the proxy's host, as tc takes it, and what it lets through: bytes each second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Queue {
    pub(crate) discipline: &'static str,
    pub(crate) rate: Option<u64>,
    /// The largest packet that ever gets through.
    pub(crate) mtu: u32,
}

const NO_QUEUE: Queue = Queue { discipline: "none", rate: None, mtu: 65_535 };

const fn tbf(discipline: &'static str, kilobits: u64) -> Queue {
    // A bucket that is smaller than a packet lets none through (`tbf_enqueue`, net/sched/sch_tbf.c).
    Queue { discipline, rate: Some(kilobits * 125), mtu: if kilobits < 1_000 { 1_500 } else { 9_000 } }
}

/// Short queues are what makes a sender's own host drop, which no loss on the way is like.
const QUEUES: [Queue; 12] = [
    tbf("tbf rate 200mbit burst 12kb limit 12kb", 200_000),
    tbf("tbf rate 200mbit burst 12kb limit 12kb", 200_000),
    tbf("tbf rate 800mbit burst 16kb limit 16kb", 800_000),
    tbf("tbf rate 100mbit burst 20kb limit 30kb", 100_000),
    tbf("tbf rate 50mbit burst 16kb limit 64kb", 50_000),
    tbf("tbf rate 20mbit burst 20kb limit 30kb", 20_000),
    tbf("tbf rate 20mbit burst 20kb limit 500kb", 20_000),
    tbf("tbf rate 4mbit burst 16kb limit 32kb", 4_000),
    tbf("tbf rate 1mbit burst 16kb limit 32kb", 1_000),
    tbf("tbf rate 200kbit burst 8kb limit 24kb", 200),
    Queue { discipline: "pfifo limit 5", rate: None, mtu: 65_535 },
    Queue { discipline: "pfifo limit 1", rate: None, mtu: 65_535 },
];

/// Values of `tcp_rmem` and `tcp_wmem` for one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) receive: &'static str,
    pub(crate) send: &'static str,
}

const RECEIVE: [&str; 5] = [
    "4096 131072 33554432",
    "4096 4096 8192",
    "4096 16384 65536",
    "4096 131072 6291456",
    "4096 1048576 33554432",
];
const SEND: [&str; 5] = [
    "4096 16384 4194304",
    "4096 4096 8192",
    "4096 8192 65536",
    "4096 131072 33554432",
    "4096 2097152 33554432",
];

const USUAL: Memory = Memory { receive: RECEIVE[0], send: SEND[0] };

/// One round's conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conditions {
    /// The round's own: given alone, it makes this round the first one.
    pub(crate) seed: u64,
    /// Before the proxy's devices.
    pub(crate) to_clients: Queue,
    pub(crate) to_servers: Queue,
    /// Of a thousand packets that come to the proxy or leave it, so many are lost.
    pub(crate) lost: u32,
    /// Of a thousand packets to the proxy, so many come twice.
    pub(crate) repeated: u32,
    /// Of a thousand packets to the proxy, so many come after later ones.
    pub(crate) late: u32,
    /// The largest packet on the wire.
    pub(crate) mtu: u32,
    /// Whether hosts hand segments to each other one by one, as networks do, and not many in one packet.
    pub(crate) single_segments: bool,
    pub(crate) proxy: Memory,
    pub(crate) clients: Memory,
    pub(crate) servers: Memory,
    /// Where the kernel lets it be chosen; else it stays as it is.
    pub(crate) congestion: &'static str,
    /// Busy loops beside setu.
    pub(crate) hogs: u32,
    pub(crate) flows: u32,
    /// Whether flows are few and so large that they last at full speed.
    pub(crate) bulk: bool,
    /// Over so much time flows begin, milliseconds.
    pub(crate) spread: u64,
    /// One in so many readers stalls for seconds; 0 for none.
    pub(crate) stalls: u64,
    /// One in so many flows is reset by one of its peers; 0 for none.
    pub(crate) resets: u64,
    /// Where forwarders carry all frames ([`super::forwarded`]). Flows then rest more often, since those that last are
    /// handed over, and are smaller.
    pub(crate) forwarded: Option<Way>,
    /// For setu's `--force-handover`, milliseconds, where there is a kernel path.
    pub(crate) force_handover: Option<u64>,
    /// When setu is told to reload, milliseconds from the beginning.
    pub(crate) reload: Option<u64>,
    /// When one of the endpoints dies with all its connections.
    pub(crate) death: Option<u64>,
    /// When setu is told to stop.
    pub(crate) drain: Option<u64>,
}

/// The seed of a run's round: the first has the run's.
pub(crate) fn seed_of(run: u64, round: u64) -> u64 {
    // Short ones are easier to type.
    if round == 0 { run } else { mix(mix(run) ^ round) >> 24 }
}

impl Conditions {
    /// Draws them.
    pub(crate) fn draw(seed: u64) -> Self {
        let mut random = Random::new(mix(seed ^ 0x70_72_74));
        let mut die = Die(&mut random);
        let (to_clients, to_servers) = match die.below(5) {
            0 => (NO_QUEUE, NO_QUEUE),
            1 | 2 => (die.one_of(&QUEUES), NO_QUEUE),
            3 => (NO_QUEUE, die.one_of(&QUEUES)),
            _ => (die.one_of(&QUEUES), die.one_of(&QUEUES)),
        };
        let slowest = to_clients.rate.into_iter().chain(to_servers.rate).min();
        // At a modem's rate, a few flows are a crowd.
        let most = slowest.map_or(200, |rate| (rate / 12_500).clamp(3, 200));
        let bulk = die.below(4) == 0;
        let (least, most) = if bulk { (2, most.min(8)) } else { (most.min(20), most) };
        let memory = |die: &mut Die<'_>, usual: u64| {
            if die.below(usual) > 0 {
                return USUAL;
            }
            Memory { receive: die.one_of(&RECEIVE), send: die.one_of(&SEND) }
        };
        let mut drawn = Self {
            seed,
            to_clients,
            to_servers,
            lost: if die.below(3) == 0 { die.one_of(&[1, 5, 10, 20, 50]) } else { 0 },
            repeated: if die.below(3) == 0 { die.one_of(&[2, 10, 50, 200]) } else { 0 },
            late: if die.below(3) == 0 { die.one_of(&[2, 10, 50]) } else { 0 },
            mtu: die
                .one_of(&[1_500, 1_500, 1_500, 1_500, 600, 9_000, 65_535])
                .min(to_clients.mtu)
                .min(to_servers.mtu),
            single_segments: die.below(4) == 0,
            proxy: memory(&mut die, 2),
            clients: memory(&mut die, 4),
            servers: memory(&mut die, 4),
            congestion: die.one_of(&["cubic", "reno", "bbr"]),
            hogs: die.one_of(&[0, 0, 1, 2, 4, 4]),
            flows: (least + die.below(most - least + 1)) as u32,
            bulk,
            spread: die.one_of(&[200, 1_000, 3_000]),
            stalls: die.one_of(&[0, 4, 12]),
            resets: if die.below(3) == 0 { 8 } else { 0 },
            forwarded: None,
            force_handover: (die.below(2) == 0).then(|| die.one_of(&[5, 20, 100, 500])),
            reload: (die.below(4) == 0).then(|| 300 + die.below(4_000)),
            death: (die.below(6) == 0).then(|| 500 + die.below(4_000)),
            drain: (die.below(6) == 0).then(|| 1_000 + die.below(4_000)),
        };
        if bulk && die.below(3) > 0 {
            drawn.be_fast();
        }
        drawn
    }

    /// Draws those of a round in which forwarders carry all frames. They do to the network all that is done to it, and no
    /// peer resets, so that each reset is setu's.
    pub(crate) fn draw_forwarded(seed: u64) -> Self {
        let mut drawn = Self::draw(seed);
        let (clients, servers) = (drawn.clients, drawn.servers);
        drawn.be_fast();
        let mut random = Random::new(mix(seed ^ 0x77_69_72_65));
        let mut die = Die(&mut random);
        let way = Way::draw(&mut die, drawn.bulk);
        let Profile { lost, repeated, late, .. } = way.profile;
        (drawn.lost, drawn.repeated, drawn.late) = (lost, repeated, late);
        drawn.flows = if drawn.bulk { die.between(2, 8) } else { die.between(60, 200) } as u32;
        drawn.spread = die.one_of(&[1_000, 3_000]);
        drawn.hogs = die.one_of(&[0, 0, 0, 1]);
        (drawn.resets, drawn.force_handover) = (0, None);
        (drawn.reload, drawn.death, drawn.drain) = (None, None, None);
        (drawn.clients, drawn.servers) = (clients, servers);
        if drawn.tiny() {
            // Each loss then costs a timeout, and a healthy flow may take minutes.
            (drawn.clients, drawn.servers) = (USUAL, USUAL);
        }
        drawn.forwarded = Some(way);
        drawn
    }

    /// Takes away all that slows the network down: some faults need a stream at full speed.
    fn be_fast(&mut self) {
        (self.to_clients, self.to_servers) = (NO_QUEUE, NO_QUEUE);
        (self.lost, self.repeated, self.late) = (0, 0, 0);
        (self.mtu, self.single_segments, self.spread) = (1_500, false, 200);
        (self.proxy, self.clients, self.servers) = (USUAL, USUAL, USUAL);
    }

    /// Bytes that all flows together may send to clients, and to servers: what takes some seconds.
    pub(crate) fn budgets(&self) -> [u64; 2] {
        let slow = self.lost >= 10 || self.late >= 50 || self.tiny();
        let most = match (slow, self.bulk, self.forwarded.is_some()) {
            (true, ..) => 20 << 20,
            (false, false, true) => 40 << 20,
            (false, true, true) => 200 << 20,
            (false, false, false) => 160 << 20,
            (false, true, false) => 1500 << 20,
        };
        [self.to_clients, self.to_servers].map(|queue| queue.rate.map_or(most, |rate| (rate * 2).min(most)))
    }

    /// Bytes of one direction of a flow, at most.
    pub(crate) fn longest(&self) -> u64 {
        match (self.lost >= 10 || self.tiny(), self.bulk) {
            (true, _) => 2 << 20,
            (false, false) => 64 << 20,
            (false, true) => 512 << 20,
        }
    }

    /// Whether windows are of a few segments.
    fn tiny(&self) -> bool {
        let small = |memory: Memory| memory.receive.ends_with(" 8192") || memory.send.ends_with(" 8192");
        [self.proxy, self.clients, self.servers].into_iter().any(small)
    }

    /// What kinds of conditions these are, for counting.
    pub(crate) fn kinds(&self) -> Vec<String> {
        let memory = |host: &str, memory: Memory| (memory != USUAL).then(|| format!("{host}: other buffers"));
        let says = |condition: bool, what: &str| condition.then(|| what.to_owned());
        [
            says(self.lost > 0, "loss"),
            says(self.repeated > 0, "repetition"),
            says(self.late > 0, "reordering"),
            says(self.bulk, "bulk"),
            says(self.single_segments, "single segments"),
            says(self.hogs > 0, "busy processors"),
            says(self.stalls > 0, "stalls"),
            says(self.resets > 0, "resets"),
            says(self.reload.is_some(), "reload"),
            says(self.death.is_some(), "death of an upstream"),
            says(self.drain.is_some(), "drain"),
            says(self.tiny(), "windows of a few segments"),
            memory("proxy", self.proxy),
            memory("clients", self.clients),
            memory("servers", self.servers),
            Some(format!("congestion control {}", self.congestion)),
            Some(format!("MTU {}", self.mtu)),
            Some(format!("to clients: {}", self.to_clients.discipline)),
            Some(format!("to servers: {}", self.to_servers.discipline)),
        ]
        .into_iter()
        .flatten()
        .chain(self.forwarded.into_iter().flat_map(Way::kinds))
        .collect()
    }
}

impl fmt::Display for Conditions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |time: Option<u64>| time.map_or_else(|| "no".to_owned(), |time| format!("{time}ms"));
        write!(
            formatter,
            "seed={} to-clients=[{}] to-servers=[{}] lost={}‰ repeated={}‰ late={}‰ mtu={} single-segments={} \
             proxy={} clients={} servers={} congestion={} hogs={} flows={} bulk={} spread={}ms stalls=1/{} resets=1/{} \
             forwarded={} force-handover={} reload={} death={} drain={}",
            self.seed,
            self.to_clients.discipline,
            self.to_servers.discipline,
            self.lost,
            self.repeated,
            self.late,
            self.mtu,
            self.single_segments,
            self.proxy,
            self.clients,
            self.servers,
            self.congestion,
            self.hogs,
            self.flows,
            self.bulk,
            self.spread,
            self.stalls,
            self.resets,
            self.forwarded.map_or_else(|| "no".to_owned(), |way| format!("[{way}]")),
            at(self.force_handover),
            at(self.reload),
            at(self.death),
            at(self.drain),
        )
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "[rmem {}, wmem {}]", self.receive, self.send)
    }
}

/// Draws.
pub(crate) struct Die<'a>(pub(crate) &'a mut Random);

impl Die<'_> {
    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // The high bits are the better ones.
        (self.0.number() >> 16) % bound.max(1)
    }

    /// From `low` to `high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// From `low` to `high`, small ones as often as large ones.
    pub(crate) fn any_scale(&mut self, low: u64, high: u64) -> u64 {
        let (least, most) = (low.max(1).ilog2(), high.max(1).ilog2());
        let scale = 1_u64 << self.between(u64::from(least), u64::from(most));
        self.between(scale, scale * 2 - 1).clamp(low, high.max(low))
    }

    /// One of them.
    pub(crate) fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_draws_the_same_each_time_and_names_its_round() {
        for round in 0..200 {
            let seed = seed_of(99, round);
            let conditions = Conditions::draw(seed);
            assert_eq!(conditions, Conditions::draw(seed));
            // Given alone, it is the first round's.
            assert_eq!(Conditions::draw(seed_of(seed, 0)), conditions);
        }
    }

    #[test]
    fn runs_of_seeds_close_by_play_other_rounds() {
        let rounds = |run| (0..500).map(move |round| seed_of(run, round));
        let all: BTreeSet<_> = (1..=16).flat_map(rounds).collect();
        assert_eq!(all.len(), 16 * 500);
    }

    #[test]
    fn the_line_tells_rounds_apart() {
        // Each field is changed alone; the line must change.
        let base = Conditions::draw(4);
        let mut lines = BTreeSet::from([base.to_string()]);
        let mut changed = 0;
        let mut change = |edit: &dyn Fn(&mut Conditions)| {
            let mut conditions = base.clone();
            edit(&mut conditions);
            assert_ne!(conditions, base);
            lines.insert(conditions.to_string());
            changed += 1;
        };
        let other = Memory { receive: "1 2 3", send: "4 5 6" };
        let queue = Queue { discipline: "another", rate: None, mtu: 1_500 };
        change(&|conditions| conditions.seed += 1);
        change(&|conditions| conditions.to_clients = queue);
        change(&|conditions| conditions.to_servers = queue);
        change(&|conditions| conditions.lost += 1);
        change(&|conditions| conditions.repeated += 1);
        change(&|conditions| conditions.late += 1);
        change(&|conditions| conditions.mtu += 1);
        change(&|conditions| conditions.single_segments ^= true);
        change(&|conditions| conditions.proxy = other);
        change(&|conditions| conditions.clients = other);
        change(&|conditions| conditions.servers = other);
        change(&|conditions| conditions.congestion = "other");
        change(&|conditions| conditions.hogs += 1);
        change(&|conditions| conditions.flows += 1);
        change(&|conditions| conditions.bulk ^= true);
        change(&|conditions| conditions.spread += 1);
        change(&|conditions| conditions.stalls += 1);
        change(&|conditions| conditions.resets += 1);
        change(&|conditions| conditions.forwarded = Some(Way::draw(&mut Die(&mut Random::new(1)), false)));
        change(&|conditions| conditions.force_handover = Some(77_777));
        change(&|conditions| conditions.reload = Some(77_777));
        change(&|conditions| conditions.death = Some(77_777));
        change(&|conditions| conditions.drain = Some(77_777));
        assert_eq!(lines.len(), changed + 1);
    }

    #[test]
    fn every_kind_is_drawn() {
        let drawn: BTreeSet<_> =
            (0..2_000).flat_map(|round| Conditions::draw(seed_of(1, round)).kinds()).collect();
        for queue in QUEUES.iter().chain([&NO_QUEUE]) {
            assert!(drawn.contains(&format!("to clients: {}", queue.discipline)), "{queue:?}");
            assert!(drawn.contains(&format!("to servers: {}", queue.discipline)), "{queue:?}");
        }
        for kind in
            ["loss", "repetition", "bulk", "reordering", "resets", "reload", "death of an upstream", "drain"]
        {
            assert!(drawn.contains(kind), "{kind}");
        }
    }

    #[test]
    fn sizes_are_bound_by_the_rate() {
        for round in 0..500 {
            let conditions = Conditions::draw(seed_of(2, round));
            if let Some(rate) = conditions.to_clients.rate {
                assert!(conditions.budgets()[0] <= rate * 2);
            }
            assert!((2..=200).contains(&conditions.flows), "{conditions}");
        }
    }
}

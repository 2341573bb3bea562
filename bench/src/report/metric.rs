//! Numbers out of rounds: what one round says, and the middle of several.

use std::collections::BTreeSet;

use super::{Round, Run};
use crate::{
    peers::Kind,
    scenarios::{self, Scenario, Unit},
};

/// One kind of number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metric {
    /// Work in a second.
    Rate,
    /// The machine's busy time, for a unit of work.
    Busy,
    /// [`Metric::Busy`], less that of direct.
    Added,
    /// The proxy's own CPU time, for a unit of work.
    Own,
    /// The proxy's context switches, for a unit of work (of messages: a million).
    Switches,
    /// Percentiles of round trips, microseconds.
    P50,
    P99,
    P999,
    /// The proxy's own memory for a connection, KiB.
    Resident,
    /// What its sockets hold for a connection, KiB.
    Buffers,
    /// Both together.
    Held,
    /// The machine's memory for a connection, KiB, less that of direct.
    Memory,
    /// The kernel's objects for a connection, KiB, less those of direct.
    Slab,
}

/// The middle of several rounds, and what was least and most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) low: f64,
    pub(super) median: f64,
    pub(super) high: f64,
}

impl Metric {
    /// Whether direct's own value is taken off.
    fn is_beyond_direct(self) -> bool {
        matches!(self, Self::Added | Self::Memory | Self::Slab)
    }

    /// Whether more of it is better.
    fn is_merit(self) -> bool {
        self == Self::Rate
    }

    /// By how much one is better than another, in this number's unit.
    pub(super) fn lead(self, one: f64, other: f64) -> f64 {
        if self.is_merit() { one - other } else { other - one }
    }

    /// With its unit.
    pub(super) fn name(self, unit: Unit) -> String {
        let cost = unit.cost_name();
        match self {
            Self::Rate => unit.rate_name(),
            Self::Busy => format!("busy, {cost}"),
            Self::Added => format!("cost of the proxy, {cost}"),
            Self::Own => format!("own CPU, {cost}"),
            Self::Switches => match unit {
                Unit::Bytes => "context switches/GB".into(),
                Unit::Count(_) => "context switches/million".into(),
                Unit::Paced | Unit::Memory => "context switches/s".into(),
            },
            Self::P50 => "p50, µs".into(),
            Self::P99 => "p99, µs".into(),
            Self::P999 => "p99.9, µs".into(),
            Self::Resident => "resident, KiB each".into(),
            Self::Buffers => "buffers, KiB each".into(),
            Self::Held => "resident and buffers, KiB each".into(),
            Self::Memory => "all memory, KiB each".into(),
            Self::Slab => "slab, KiB each".into(),
        }
    }

    fn of(self, round: &Round, unit: Unit) -> Option<f64> {
        let (outcome, cost) = (&round.outcome, &round.cost);
        let share = unit.share(outcome.work, outcome.seconds);
        let each = |bytes: i64| bytes as f64 / 1024.0 / outcome.work as f64;
        let percentile = |at: usize| outcome.latency.map(|latency| latency[at]);
        match self {
            Self::Rate => Some(unit.rate(outcome.work, outcome.seconds)),
            Self::Busy | Self::Added => Some(cost.busy / share),
            Self::Own => Some(cost.own / share),
            Self::Switches => Some(cost.switches as f64 / share),
            Self::P50 => percentile(0),
            Self::P99 => percentile(1),
            Self::P999 => percentile(2),
            Self::Resident => round.memory.as_ref().map(|memory| each(memory.resident)),
            Self::Buffers => round.memory.as_ref().map(|memory| each(memory.buffers)),
            Self::Held => round.memory.as_ref().map(|memory| each(memory.resident + memory.buffers)),
            Self::Memory => round.memory.as_ref().map(|memory| each(memory.unavailable)),
            Self::Slab => round.memory.as_ref().map(|memory| each(memory.slab)),
        }
    }
}

impl Run {
    /// The scenarios that were run, in the order of the report.
    pub(super) fn scenarios(&self) -> Vec<Scenario> {
        let run = |scenario: &Scenario| self.rounds.iter().any(|round| round.scenario == scenario.name);
        scenarios::all().into_iter().filter(run).collect()
    }

    /// The scenarios that were to be run, with or without a round to show for it.
    pub(super) fn tried(&self) -> Vec<Scenario> {
        let rounds = self.rounds.iter().map(|round| &round.scenario);
        let skipped = self.skipped.iter().map(|skip| &skip.scenario);
        let failed = self.failed.iter().map(|failure| &failure.scenario);
        let names: BTreeSet<_> = rounds.chain(skipped).chain(failed).map(String::as_str).collect();
        scenarios::all().into_iter().filter(|scenario| names.contains(scenario.name)).collect()
    }

    /// Whether a peer was to take part.
    pub(super) fn has(&self, peer: Kind) -> bool {
        let rounds = self.rounds.iter().map(|round| round.peer);
        let skipped = self.skipped.iter().map(|skip| skip.peer);
        let failed = self.failed.iter().map(|failure| failure.peer);
        rounds.chain(skipped).chain(failed).any(|kind| kind == peer)
    }

    /// The peer with the best median, and its number.
    pub(super) fn best(
        &self,
        scenario: &Scenario,
        metric: Metric,
        which: impl Fn(Kind) -> bool,
    ) -> Option<(Kind, Spread)> {
        let peers = self.peers(scenario).into_iter().filter(|kind| which(*kind));
        let spreads = peers.filter_map(|kind| Some((kind, self.spread(scenario, kind, metric)?)));
        spreads.max_by(|(_, one), (_, other)| metric.lead(one.median, other.median).total_cmp(&0.0))
    }

    /// setu's number: that of the default path, which is what operators get. A run without it counts by the best of
    /// the paths that it has.
    pub(super) fn ours(&self, scenario: &Scenario, metric: Metric) -> Option<(Kind, Spread)> {
        let has_default = self.has(Kind::SetuAuto);
        self.best(scenario, metric, |kind| if has_default { kind == Kind::SetuAuto } else { kind.is_setu() })
    }

    /// The peers with rounds of a scenario, in the order of the report.
    pub(super) fn peers(&self, scenario: &Scenario) -> Vec<Kind> {
        let all: &[Kind] = clap::ValueEnum::value_variants();
        let run = |kind: &Kind| {
            self.rounds.iter().any(|round| round.scenario == scenario.name && round.peer == *kind)
        };
        all.iter().copied().filter(run).collect()
    }

    /// A number of a peer, over its rounds. Direct's median is taken off where the number is about what a proxy adds.
    pub(super) fn spread(&self, scenario: &Scenario, peer: Kind, metric: Metric) -> Option<Spread> {
        let of = |peer: Kind| {
            let rounds =
                self.rounds.iter().filter(move |round| round.scenario == scenario.name && round.peer == peer);
            Spread::over(rounds.filter_map(|round| metric.of(round, scenario.unit)).collect())
        };
        let spread = of(peer)?;
        if !metric.is_beyond_direct() {
            return Some(spread);
        }
        let direct = of(Kind::Direct)?.median;
        let Spread { low, median, high } = spread;
        Some(Spread { low: low - direct, median: median - direct, high: high - direct })
    }
}

impl Spread {
    /// Of any values; the middle of an even number of them is between two.
    fn over(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let upper = *values.get(middle)?;
        let median =
            if values.len().is_multiple_of(2) { f64::midpoint(values[middle - 1], upper) } else { upper };
        Some(Self { low: *values.first()?, median, high: *values.last()? })
    }

    /// How far rounds are from their middle: half of what lies between the least and the most.
    pub(super) fn noise(self) -> f64 {
        (self.high - self.low) / 2.0
    }

    /// Median, least and most, for a table.
    pub(super) fn text(self) -> String {
        format!("{} ({} to {})", digits(self.median), digits(self.low), digits(self.high))
    }
}

/// Three digits that count, or all of a whole number.
pub(super) fn digits(value: f64) -> String {
    let size = value.abs();
    let decimals = match size {
        0.0 => 0,
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.9995 => 2,
        _ => 3,
    };
    let text = format!("{size:.decimals$}");
    let whole = text.split('.').next().unwrap_or("").len();
    let mut spaced: String = if value < 0.0 { "-".into() } else { String::new() };
    for (at, digit) in text.chars().enumerate() {
        if at > 0 && at < whole && (whole - at).is_multiple_of(3) {
            spaced.push(',');
        }
        spaced.push(digit);
    }
    spaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_what_counts() {
        let cases = [(0.0, "0"), (0.01234, "0.012"), (1.2345, "1.23"), (12.345, "12.3"), (99.96, "100")];
        for (value, text) in cases.into_iter().chain([(1_234_567.0, "1,234,567"), (-1234.4, "-1,234")]) {
            assert_eq!(digits(value), text);
        }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Spread::over(vec![]), None);
        let odd = Spread::over(vec![9.0, 1.0, 4.0]).unwrap();
        assert_eq!(odd, Spread { low: 1.0, median: 4.0, high: 9.0 });
        assert!((Spread::over(vec![1.0, 2.0]).unwrap().median - 1.5).abs() < 1e-9);
    }
}

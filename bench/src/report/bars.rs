//! The bars: what setu is to reach, as ratios within one run.

use std::fmt::Write as _;

use super::{
    Run,
    metric::{Metric, digits},
};
use crate::{
    peers::Kind,
    scenarios::{self, Scenario},
};

/// The other side of a ratio.
#[derive(Clone, Copy)]
enum Beside {
    One(Kind),
    /// HAProxy in either form.
    Haproxy,
    /// All that is neither setu nor a ceiling.
    Best,
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

struct Bar {
    scenario: &'static str,
    metric: Metric,
    beside: Beside,
    bound: Bound,
}

const BARS: [Bar; 19] = {
    use Beside::{Best, Haproxy, One};
    use Bound::{AtLeast, AtMost};
    use Kind::{HaproxyReference, HaproxyTuned, Nginx};
    use Metric::{Added, Held, Memory, Own, P99, Rate, Resident};
    const fn bar(scenario: &'static str, metric: Metric, beside: Beside, bound: Bound) -> Bar {
        Bar { scenario, metric, beside, bound }
    }
    [
        bar("bulk-1-down", Rate, One(HaproxyReference), AtLeast(3.0)),
        bar("bulk-1-down", Rate, One(Nginx), AtLeast(1.2)),
        bar("bulk-1-down", Added, One(HaproxyReference), AtMost(0.25)),
        bar("bulk-1-down", Added, One(Nginx), AtMost(0.7)),
        bar("bulk-1-up", Rate, One(HaproxyReference), AtLeast(3.0)),
        bar("bulk-1-up", Rate, One(Nginx), AtLeast(1.2)),
        bar("bulk-1-up", Added, One(HaproxyReference), AtMost(0.25)),
        bar("bulk-1-up", Added, One(Nginx), AtMost(0.7)),
        bar("ping-pong-32", Rate, Best, AtLeast(1.0)),
        bar("ping-pong-32", P99, Best, AtMost(1.0)),
        bar("ping-pong-4000", Rate, Best, AtLeast(1.0)),
        bar("connections", Rate, Best, AtLeast(1.0)),
        bar("sni-connections", Rate, Best, AtLeast(1.0)),
        bar("idle", Resident, Best, AtMost(0.25)),
        bar("stalled", Held, One(HaproxyReference), AtMost(1.5)),
        bar("stalled", Memory, One(HaproxyReference), AtMost(1.5)),
        bar("tls-handshakes", Own, One(HaproxyReference), AtMost(0.1)),
        bar("tls-handshakes", Own, One(HaproxyTuned), AtMost(1.0)),
        bar("tls-ping-pong-32", Rate, Haproxy, AtLeast(1.0)),
    ]
};

/// The bars of what was to be measured in this run, as a table.
pub(super) fn table(run: &Run) -> String {
    let mut text = String::from(
        "| scenario | what | setu | beside | ratio | bar | |\n| --- | --- | ---: | ---: | ---: | ---: | --- |\n",
    );
    let tried = |name: &str| {
        let skipped = run.skipped.iter().map(|skip| &skip.scenario);
        run.rounds.iter().map(|round| &round.scenario).chain(skipped).any(|scenario| scenario == name)
    };
    for scenario in scenarios::all().into_iter().filter(|scenario| tried(scenario.name)) {
        for bar in BARS.iter().filter(|bar| bar.scenario == scenario.name) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{}", bar.row(run, &scenario));
        }
    }
    text
}

impl Bar {
    fn row(&self, run: &Run, scenario: &Scenario) -> String {
        let ours = self.best(run, scenario, Kind::is_setu);
        let theirs = self.best(run, scenario, |kind| match self.beside {
            Beside::One(one) => kind == one,
            Beside::Haproxy => matches!(kind, Kind::HaproxyReference | Kind::HaproxyTuned),
            Beside::Best => !kind.is_setu() && !kind.is_ceiling(),
        });
        let side = |side: Option<(Kind, f64)>| {
            side.map_or_else(
                || "not measured".into(),
                |(kind, value)| format!("{} ({})", digits(value), kind.name()),
            )
        };
        // What is left after direct's share may be nothing, or less: there is no ratio to that.
        let ratio = ours.zip(theirs).map(|(ours, theirs)| ours.1.max(0.0) / theirs.1);
        let ratio = ratio.filter(|_| theirs.is_some_and(|theirs| theirs.1 > 0.0));
        let (bound, holds) = match self.bound {
            Bound::AtLeast(bound) => (format!("≥ {bound:.2}"), ratio.map(|ratio| ratio >= bound)),
            Bound::AtMost(bound) => (format!("≤ {bound:.2}"), ratio.map(|ratio| ratio <= bound)),
        };
        let verdict = match holds {
            Some(true) => "holds",
            Some(false) => "**missed**",
            None => "not known",
        };
        format!(
            "| {} | {} | {} | {} | {} | {bound} | {verdict} |",
            scenario.name,
            self.metric.name(scenario.unit),
            side(ours),
            side(theirs),
            ratio.map_or_else(|| "–".into(), |ratio| format!("{ratio:.2}"))
        )
    }

    /// The peer with the best median, and that.
    fn best(&self, run: &Run, scenario: &Scenario, which: impl Fn(Kind) -> bool) -> Option<(Kind, f64)> {
        let peers = run.peers(scenario).into_iter().filter(|kind| which(*kind));
        let values = peers.filter_map(|kind| Some((kind, run.spread(scenario, kind, self.metric)?.median)));
        match self.bound {
            Bound::AtLeast(_) => values.max_by(|one, other| one.1.total_cmp(&other.1)),
            Bound::AtMost(_) => values.min_by(|one, other| one.1.total_cmp(&other.1)),
        }
    }
}

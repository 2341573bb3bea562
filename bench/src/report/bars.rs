//! The bars: what setu is to reach, as ratios within one run, or in all.

use std::fmt::Write as _;

use super::{
    Run,
    metric::{Metric, Spread, digits},
};
use crate::{peers::Kind, scenarios::Scenario};

/// The other side of a ratio.
#[derive(Clone, Copy)]
enum Beside {
    /// There is none: the bound is to the number itself.
    Nobody,
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

/// Whose number it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    /// The default path's.
    Default,
    /// The wire's, where a run has it: an operator has to ask for that.
    Wire,
}

struct Bar {
    of: Of,
    scenario: &'static str,
    metric: Metric,
    beside: Beside,
    bound: Bound,
}

const BARS: [Bar; 46] = {
    use Beside::{Best, Haproxy, Nobody, One};
    use Bound::{AtLeast, AtMost};
    use Kind::{HaproxyReference, HaproxyTuned, NftDnat, Nginx, SetuUserspace};
    use Metric::{Added, Held, Memory, Own, P99, Rate, Resident};
    const fn bar(scenario: &'static str, metric: Metric, beside: Beside, bound: Bound) -> Bar {
        Bar { of: Of::Default, scenario, metric, beside, bound }
    }
    const fn wire(scenario: &'static str, metric: Metric, beside: Beside, bound: Bound) -> Bar {
        Bar { of: Of::Wire, ..bar(scenario, metric, beside, bound) }
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
        bar("stalled-after-reading", Held, Nobody, AtMost(1024.0)),
        bar("stalled-after-reading", Held, One(HaproxyReference), AtMost(1.5)),
        bar("tls-handshakes", Own, One(HaproxyReference), AtMost(0.1)),
        bar("tls-handshakes", Own, One(HaproxyTuned), AtMost(1.0)),
        bar("tls-ping-pong-32", Rate, Haproxy, AtLeast(1.0)),
        wire("bulk-1-down", Rate, One(NftDnat), AtLeast(0.9)),
        wire("bulk-1-down", Rate, One(SetuUserspace), AtLeast(1.2)),
        wire("bulk-1-down", Added, One(Nginx), AtMost(0.25)),
        wire("bulk-8-down", Rate, One(NftDnat), AtLeast(0.9)),
        wire("bulk-8-down", Rate, One(SetuUserspace), AtLeast(1.2)),
        wire("bulk-8-down", Added, One(Nginx), AtMost(0.25)),
        wire("bulk-1-up", Rate, One(NftDnat), AtLeast(0.9)),
        wire("bulk-1-up", Rate, One(SetuUserspace), AtLeast(1.2)),
        wire("bulk-1-up", Added, One(Nginx), AtMost(0.25)),
        wire("bulk-8-up", Rate, One(NftDnat), AtLeast(0.9)),
        wire("bulk-8-up", Rate, One(SetuUserspace), AtLeast(1.2)),
        wire("bulk-8-up", Added, One(Nginx), AtMost(0.25)),
        wire("ping-pong-32", Rate, Best, AtLeast(1.5)),
        wire("ping-pong-32", Rate, One(NftDnat), AtLeast(0.9)),
        wire("ping-pong-32", Added, One(Nginx), AtMost(0.25)),
        wire("ping-pong-500", Rate, Best, AtLeast(1.5)),
        wire("ping-pong-500", Rate, One(NftDnat), AtLeast(0.9)),
        wire("ping-pong-500", Added, One(Nginx), AtMost(0.25)),
        wire("ping-pong-4000", Rate, Best, AtLeast(1.5)),
        wire("ping-pong-4000", Rate, One(NftDnat), AtLeast(0.9)),
        wire("ping-pong-4000", Added, One(Nginx), AtMost(0.25)),
        wire("connections", Rate, One(SetuUserspace), AtLeast(0.95)),
        wire("idle", Memory, Nobody, AtMost(1.0)),
        wire("idle", Resident, Nobody, AtMost(1.0)),
        wire("phones", Added, One(Nginx), AtMost(0.25)),
    ]
};

/// The bars of what was to be measured in this run, as a table.
pub(super) fn table(run: &Run) -> String {
    let mut text = String::from(
        "| scenario | what | setu | beside | ratio | bar | |\n| --- | --- | ---: | ---: | ---: | ---: | --- |\n",
    );
    for scenario in run.tried() {
        let has_wire = run.has(Kind::SetuWire);
        let is_its = |bar: &&Bar| bar.scenario == scenario.name && (bar.of == Of::Default || has_wire);
        for bar in BARS.iter().filter(is_its) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{}", bar.row(run, &scenario));
        }
    }
    text
}

impl Bar {
    fn row(&self, run: &Run, scenario: &Scenario) -> String {
        let ours = match self.of {
            Of::Default => run.ours(scenario, self.metric),
            Of::Wire => run.best(scenario, self.metric, |kind| kind == Kind::SetuWire),
        };
        let theirs = run.best(scenario, self.metric, |kind| match self.beside {
            Beside::Nobody => false,
            Beside::One(one) => kind == one,
            Beside::Haproxy => matches!(kind, Kind::HaproxyReference | Kind::HaproxyTuned),
            Beside::Best => !kind.is_setu() && !kind.is_ceiling(),
        });
        let side = |side: Option<(Kind, Spread)>| {
            side.map_or_else(
                || "not measured".into(),
                |(kind, spread)| format!("{} ({})", digits(spread.median), kind.name()),
            )
        };
        let alone = matches!(self.beside, Beside::Nobody);
        let ours_is = ours.map(|(_, spread)| spread.median);
        // What is left after direct's share may be nothing, or less: there is no ratio to that.
        let ratio =
            ours_is.zip(theirs).map(|(ours, (_, theirs))| (ours.max(0.0) / theirs.median, theirs.median));
        let ratio = ratio.filter(|(_, theirs)| *theirs > 0.0).map(|(ratio, _)| ratio);
        let number = if alone { ours_is } else { ratio };
        let shown = |bound: f64| if alone { digits(bound) } else { format!("{bound:.2}") };
        let (bound, holds) = match self.bound {
            Bound::AtLeast(bound) => (format!("≥ {}", shown(bound)), number.map(|number| number >= bound)),
            Bound::AtMost(bound) => (format!("≤ {}", shown(bound)), number.map(|number| number <= bound)),
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
            if alone { "–".into() } else { side(theirs) },
            ratio.map_or_else(|| "–".into(), |ratio| format!("{ratio:.2}"))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    /// The cells of the only row about a scenario beside somebody.
    fn row(run: &Run, scenario: &str, beside: &str) -> Vec<String> {
        let table = table(run);
        let begin = format!("| {scenario} |");
        let rows: Vec<_> = table.lines().filter(|line| line.starts_with(&begin)).collect();
        let rows: Vec<_> = rows.iter().filter(|line| line.contains(beside)).collect();
        assert_eq!(rows.len(), 1, "{scenario} beside {beside}: {table}");
        rows[0].split('|').map(|cell| cell.trim().to_owned()).collect()
    }

    #[test]
    fn the_default_path_is_judged_and_not_the_better_one() {
        let mut run = sample::run();
        sample::rates(&mut run, "bulk-1-down", Kind::HaproxyReference, &[1.0, 1.0, 1.0]);
        sample::rates(&mut run, "bulk-1-down", Kind::SetuUserspace, &[4.0, 4.0, 4.0]);
        sample::rates(&mut run, "bulk-1-down", Kind::SetuSockmap, &[2.0, 2.0, 2.0]);
        let cells = row(&run, "bulk-1-down", "1.00 (haproxy-reference)");
        assert_eq!(
            cells[3..8],
            ["4.00 (setu-userspace)", "1.00 (haproxy-reference)", "4.00", "≥ 3.00", "holds"]
        );
        sample::rates(&mut run, "bulk-1-down", Kind::SetuAuto, &[2.5, 2.9, 2.9]);
        let cells = row(&run, "bulk-1-down", "1.00 (haproxy-reference)");
        assert_eq!(
            cells[3..8],
            ["2.90 (setu-auto)", "1.00 (haproxy-reference)", "2.90", "≥ 3.00", "**missed**"]
        );
    }

    #[test]
    fn a_default_path_that_was_not_measured_is_not_replaced_by_another() {
        let mut run = sample::run();
        sample::rates(&mut run, "bulk-1-up", Kind::HaproxyReference, &[1.0]);
        sample::rates(&mut run, "bulk-1-up", Kind::SetuUserspace, &[4.0]);
        run.failed.push(sample::failure("bulk-1-up", Kind::SetuAuto));
        let cells = row(&run, "bulk-1-up", "1.00 (haproxy-reference)");
        assert_eq!((cells[3].as_str(), cells[7].as_str()), ("not measured", "not known"));
    }

    #[test]
    fn the_wire_has_bars_of_its_own_where_it_was_measured() {
        let mut run = sample::run();
        sample::rates(&mut run, "bulk-1-up", Kind::NftDnat, &[20.0]);
        sample::rates(&mut run, "bulk-1-up", Kind::SetuAuto, &[4.0]);
        assert!(!table(&run).contains("nft-dnat"), "nobody asked for it");
        sample::rates(&mut run, "bulk-1-up", Kind::SetuWire, &[18.0]);
        let cells = row(&run, "bulk-1-up", "nft-dnat");
        assert_eq!(cells[3..8], ["18.0 (setu-wire)", "20.0 (nft-dnat)", "0.90", "≥ 0.90", "holds"]);
    }

    #[test]
    fn what_readers_hold_that_stall_late_has_a_bar_of_its_own() {
        let scenario = "stalled-after-reading";
        let mut run = sample::run();
        sample::held(&mut run, scenario, Kind::HaproxyReference, &[900, 1000, 1000]);
        sample::held(&mut run, scenario, Kind::SetuAuto, &[1020, 1024, 1030]);
        assert_eq!(row(&run, scenario, "| – |")[3..8], ["1,024 (setu-auto)", "–", "–", "≤ 1,024", "holds"]);
        let beside = |run: &Run| row(run, scenario, "1,000 (haproxy-reference)");
        assert_eq!(beside(&run)[5..8], ["1.02", "≤ 1.50", "holds"]);
        sample::held(&mut run, scenario, Kind::SetuAuto, &[1600, 1600, 1600, 1600]);
        assert_eq!(row(&run, scenario, "| – |")[7], "**missed**");
        assert_eq!(beside(&run)[5..8], ["1.60", "≤ 1.50", "**missed**"]);
    }
}

//! The default path beside the best of those that it picks from: what picking costs, and where it picks wrong.

use std::fmt::Write as _;

use super::{
    Run,
    metric::{Metric, Spread, digits},
};
use crate::{
    peers::Kind,
    scenarios::{Scenario, Unit},
};

/// One number of one scenario.
struct Comparison {
    scenario: Scenario,
    metric: Metric,
    auto: Option<Spread>,
    better: Option<(Kind, Spread)>,
}

/// What comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Ahead,
    WithinNoise,
    Behind,
}

/// The section of a run's page; nothing when the default path was not run.
pub(super) fn section(run: &Run) -> String {
    if !run.has(Kind::SetuAuto) {
        return String::new();
    }
    let mut text = String::from(
        "## auto beside the best of its paths\n\nThe default, `relay.path = \"auto\"`, beside whichever forced path has \
         the best median of that number. Noise is half of what lies between the least and the most of the rounds, the \
         larger one of both sides, as a share of the best median.\n\n\
         | scenario | what | setu-auto | the best | ratio | noise | |\n\
         | --- | --- | ---: | ---: | ---: | ---: | --- |\n",
    );
    for comparison in comparisons(run) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", comparison.row());
    }
    text + "\n"
}

/// For `docs/performance.md`: where the default path is behind; nothing when it was not run.
pub(super) fn sentence(run: &Run) -> String {
    if !run.has(Kind::SetuAuto) {
        return String::new();
    }
    let all = comparisons(run);
    let behind: Vec<_> =
        all.iter().filter(|comparison| comparison.standing() == Some(Standing::Behind)).collect();
    let unknown = all.iter().filter(|comparison| comparison.standing().is_none()).count();
    let mut text = format!(
        "The default, `setu-auto`, beside the best of its paths: of {} numbers {} are behind by more than noise",
        all.len(),
        behind.len()
    );
    if unknown > 0 {
        let _ = write!(text, ", {unknown} not known");
    }
    let which: Vec<_> = behind
        .iter()
        .map(|one| format!("{} ({})", one.scenario.name, one.metric.name(one.scenario.unit)))
        .collect();
    if !which.is_empty() {
        let _ = write!(text, ": {}", which.join("; "));
    }
    text + ".\n\n"
}

/// The numbers that a scenario is about.
fn headlines(unit: Unit) -> &'static [Metric] {
    match unit {
        Unit::Bytes => &[Metric::Rate, Metric::Added],
        Unit::Count(_) => &[Metric::Rate, Metric::Busy, Metric::P99],
        Unit::Paced => &[Metric::Busy, Metric::P50, Metric::P99],
        Unit::Memory => &[Metric::Held, Metric::Memory],
    }
}

/// All that one side at least has a number for; what a run has no direct for has none.
fn comparisons(run: &Run) -> Vec<Comparison> {
    let mut all = Vec::new();
    for scenario in run.tried() {
        for metric in headlines(scenario.unit).iter().copied() {
            let auto = run.spread(&scenario, Kind::SetuAuto, metric);
            let better = run.best(&scenario, metric, Kind::is_forced_setu);
            if auto.is_some() || better.is_some() {
                all.push(Comparison { scenario: scenario.clone(), metric, auto, better });
            }
        }
    }
    all
}

impl Comparison {
    /// How far the rounds of either side are apart.
    fn noise(&self) -> Option<f64> {
        let (auto, (_, better)) = self.auto.zip(self.better)?;
        Some(auto.noise().max(better.noise()))
    }

    fn standing(&self) -> Option<Standing> {
        let (auto, (_, better)) = self.auto.zip(self.better)?;
        let (lead, noise) = (self.metric.lead(auto.median, better.median), self.noise()?);
        Some(match lead {
            lead if lead > noise => Standing::Ahead,
            lead if lead < -noise => Standing::Behind,
            _ => Standing::WithinNoise,
        })
    }

    fn row(&self) -> String {
        let Self { scenario, metric, auto, better } = self;
        let share = |value: Option<f64>| {
            let share = value.zip(*better).filter(|(_, (_, better))| better.median > 0.0);
            share.map(|(value, (_, better))| value / better.median)
        };
        // What is left after direct's share may be nothing, or less: there is no ratio to that.
        let ratio =
            share(auto.map(|auto| auto.median)).map_or_else(|| "–".into(), |ratio| format!("{ratio:.2}"));
        let noise = match (share(self.noise()), self.noise()) {
            (Some(share), _) => format!("± {share:.2}"),
            (None, Some(noise)) => format!("± {} in all", digits(noise)),
            (None, None) => "–".into(),
        };
        let verdict = match self.standing() {
            Some(Standing::Ahead) => "ahead",
            Some(Standing::WithinNoise) => "within noise",
            Some(Standing::Behind) => "**behind**",
            None => "not known",
        };
        format!(
            "| {} | {} | {} | {} | {ratio} | {noise} | {verdict} |",
            scenario.name,
            metric.name(scenario.unit),
            auto.map_or_else(|| "not measured".into(), Spread::text),
            better.map_or_else(
                || "not measured".into(),
                |(kind, spread)| format!("{}, {}", spread.text(), kind.name())
            )
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn behind_by_more_than_noise_is_shown_as_behind() {
        let mut run = sample::run();
        sample::rates(&mut run, "bulk-1-down", Kind::SetuSockmap, &[5.0, 5.0, 5.0]);
        sample::rates(&mut run, "bulk-1-down", Kind::SetuUserspace, &[9.8, 10.0, 10.2]);
        sample::rates(&mut run, "bulk-1-down", Kind::SetuAuto, &[9.0, 9.6, 9.7]);
        // Its noise is 0.35, and it is 0.4 behind.
        let row = "| bulk-1-down | Gbit/s | 9.60 (9.00 to 9.70) | 10.0 (9.80 to 10.2), setu-userspace | 0.96 | ± 0.03 | \
                   **behind** |";
        assert!(section(&run).contains(row), "{}", section(&run));
        assert!(
            sentence(&run).contains("1 are behind by more than noise: bulk-1-down (Gbit/s)."),
            "{}",
            sentence(&run)
        );
        // The same medians in rounds that are farther apart tell nothing.
        sample::rates(&mut run, "bulk-1-down", Kind::SetuUserspace, &[9.0, 11.0]);
        assert!(section(&run).contains("| 0.96 | ± 0.10 | within noise |"), "{}", section(&run));
        assert!(sentence(&run).contains(" 0 are behind by more than noise."), "{}", sentence(&run));
    }

    #[test]
    fn less_memory_is_better() {
        let mut run = sample::run();
        sample::held(&mut run, "idle", Kind::SetuSockmap, &[1, 1, 1]);
        sample::held(&mut run, "idle", Kind::SetuUserspace, &[4, 4, 4]);
        sample::held(&mut run, "idle", Kind::SetuAuto, &[3, 3, 3]);
        let row = "| 3.00 (3.00 to 3.00) | 1.00 (1.00 to 1.00), setu-sockmap | 3.00 | ± 0.00 | **behind** |";
        assert!(section(&run).contains(row), "{}", section(&run));
    }

    #[test]
    fn a_number_that_is_missing_is_told_and_a_run_without_the_default_path_has_no_table() {
        let mut run = sample::run();
        sample::rates(&mut run, "connections", Kind::SetuUserspace, &[1.0]);
        assert_eq!((section(&run), sentence(&run)), (String::new(), String::new()));
        run.failed.push(sample::failure("connections", Kind::SetuAuto));
        assert!(section(&run).contains("| not measured | "), "{}", section(&run));
        assert!(section(&run).contains("| – | – | not known |"), "{}", section(&run));
        assert!(sentence(&run).contains(", 2 not known."), "{}", sentence(&run));
    }
}

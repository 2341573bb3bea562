//! A run in three lines, for the README of the repository.

use std::fmt::Write as _;

use super::{
    Run,
    metric::{Metric, digits},
};
use crate::{peers::Kind, scenarios};

/// One number, beside those of the peers that people would use instead.
struct Number {
    what: &'static str,
    scenario: &'static str,
    metric: Metric,
    unit: &'static str,
}

const LINES: [&[Number]; 3] = {
    const fn number(
        what: &'static str,
        scenario: &'static str,
        metric: Metric,
        unit: &'static str,
    ) -> Number {
        Number { what, scenario, metric, unit }
    }
    [
        &[number("One stream to the client", "bulk-1-down", Metric::Rate, "Gbit/s")],
        &[
            number("Memory of the process for an idle chat", "idle", Metric::Resident, "KiB"),
            number("with its sockets, for a reader that never reads", "stalled", Metric::Held, "KiB"),
        ],
        &[number("Processor time of a full TLS handshake", "tls-handshakes", Metric::Own, "µs")],
    ]
};

const BESIDE: [(Kind, &str); 3] =
    [(Kind::HaproxyReference, "HAProxy"), (Kind::HaproxyTuned, "HAProxy tuned"), (Kind::Nginx, "nginx")];

/// What goes into the README of the repository.
pub(super) fn block(run: &Run) -> String {
    let mut text = format!(
        "\n{}, medians; HAProxy with the reference's settings (buffers of 4 kB, RSA 4096), and tuned:\n\n",
        run.environment.occasion()
    );
    for line in LINES {
        let numbers: Vec<_> = line.iter().map(|number| number.text(run)).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "- {}.", numbers.join("; "));
    }
    text + "\n"
}

impl Number {
    fn text(&self, run: &Run) -> String {
        let Self { what, metric, unit, .. } = self;
        let scenario = scenarios::all().into_iter().find(|scenario| scenario.name == self.scenario);
        let measured = scenario.and_then(|scenario| Some((run.ours(&scenario, *metric)?, scenario)));
        let Some(((kind, ours), scenario)) = measured else { return format!("{what}: not measured") };
        // The default path needs no name; another must not be taken for it.
        let name = if kind == Kind::SetuAuto { "setu" } else { kind.name() };
        let mut text = format!("{what}: {name} **{} {unit}**", digits(ours.median));
        if let Some(wire) = run.spread(&scenario, Kind::SetuWire, *metric) {
            let _ = write!(text, ", on the wire **{}**", digits(wire.median));
        }
        for (peer, name) in BESIDE {
            if let Some(theirs) = run.spread(&scenario, peer, *metric) {
                let _ = write!(text, ", {name} {}", digits(theirs.median));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn the_default_path_is_told_beside_who_was_measured() {
        let mut run = sample::run();
        sample::rates(&mut run, "bulk-1-down", Kind::HaproxyReference, &[1.0, 1.0, 1.0]);
        sample::rates(&mut run, "bulk-1-down", Kind::Nginx, &[2.0, 2.0, 2.0]);
        sample::rates(&mut run, "bulk-1-down", Kind::SetuUserspace, &[4.0, 4.0, 4.0]);
        let line = |run: &Run| block(run).lines().find(|line| line.starts_with("- One")).unwrap().to_owned();
        let beside = "HAProxy 1.00, nginx 2.00.";
        assert_eq!(
            line(&run),
            format!("- One stream to the client: setu-userspace **4.00 Gbit/s**, {beside}")
        );
        sample::rates(&mut run, "bulk-1-down", Kind::SetuAuto, &[3.0, 3.0, 3.0]);
        assert_eq!(line(&run), format!("- One stream to the client: setu **3.00 Gbit/s**, {beside}"));
        sample::rates(&mut run, "bulk-1-down", Kind::SetuWire, &[5.0, 5.0, 5.0]);
        let both = "- One stream to the client: setu **3.00 Gbit/s**, on the wire **5.00**";
        assert_eq!(line(&run), format!("{both}, {beside}"));
    }

    #[test]
    fn a_number_that_is_missing_is_told() {
        let mut run = sample::run();
        sample::held(&mut run, "idle", Kind::SetuAuto, &[2, 2, 2]);
        let memory = "- Memory of the process for an idle chat: setu **1.00 KiB**; with its sockets, for a reader that \
                      never reads: not measured.";
        assert!(block(&run).contains(memory), "{}", block(&run));
        assert_eq!(block(&run).lines().filter(|line| line.starts_with("- ")).count(), LINES.len());
    }

    #[test]
    fn every_number_is_of_a_scenario() {
        let all = scenarios::all();
        for number in LINES.into_iter().flatten() {
            assert!(all.iter().any(|scenario| scenario.name == number.scenario), "{}", number.scenario);
        }
    }
}

//! What a run found, for the terminal and for a committed run's page.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::Result;

use super::{
    conditions::Conditions,
    judge::{Finding, Kind},
};
use crate::environment::Environment;

/// What one path was put through, and how it came out.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) path: &'static str,
    pub(crate) time: Duration,
    rounds: u64,
    kinds: BTreeMap<String, u64>,
    flows: u64,
    bytes: u64,
    /// Flows whose bytes moved in the kernel when they ended, and otherwise.
    ends: BTreeMap<String, u64>,
    reasons: BTreeMap<String, u64>,
    counts: BTreeMap<String, u64>,
    facts: BTreeMap<String, u64>,
    /// The flow that took longest: its time, the round's seed, its number.
    slowest: Option<(Duration, u64, u32)>,
    findings: Vec<(u64, Finding)>,
}

/// What a round adds.
#[derive(Default)]
pub(crate) struct Round {
    pub(crate) bytes: u64,
    /// By the path on which connections ended.
    pub(crate) ends: BTreeMap<String, u64>,
    /// By their reason.
    pub(crate) reasons: BTreeMap<String, u64>,
    /// Of the kernel path, in setu's words.
    pub(crate) counts: BTreeMap<String, u64>,
    /// What hosts and forwarders counted.
    pub(crate) facts: BTreeMap<String, u64>,
    /// The flow that took longest: its time, its number.
    pub(crate) slowest: Option<(Duration, u32)>,
    pub(crate) findings: Vec<Finding>,
}

impl Tally {
    pub(crate) fn new(path: &'static str) -> Self {
        Self { path, ..Self::default() }
    }

    pub(crate) fn add(&mut self, conditions: &Conditions, forced: bool, round: Round) {
        self.rounds += 1;
        self.flows += u64::from(conditions.flows);
        self.bytes += round.bytes;
        let kinds = conditions.kinds().into_iter().chain(forced.then(|| "forced hand-over".to_owned()));
        for kind in kinds {
            *self.kinds.entry(kind).or_default() += 1;
        }
        for (sums, more) in [
            (&mut self.ends, round.ends),
            (&mut self.reasons, round.reasons),
            (&mut self.counts, round.counts),
            (&mut self.facts, round.facts),
        ] {
            for (key, count) in more {
                *sums.entry(key).or_default() += count;
            }
        }
        let slowest = round.slowest.map(|(time, flow)| (time, conditions.seed, flow));
        self.slowest = self.slowest.max(slowest);
        self.findings.extend(round.findings.into_iter().map(|finding| (conditions.seed, finding)));
    }

    /// How many flows did something, in the words of a round's counts.
    pub(crate) fn count(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }

    pub(crate) fn found(&self) -> usize {
        self.findings.len()
    }

    fn of(&self, kind: Kind) -> usize {
        self.findings.iter().filter(|(_, finding)| finding.kind == kind).count()
    }

    /// A table, as Markdown.
    pub(crate) fn table(&self) -> String {
        let mut table = format!(
            "\n**{}**, {:.0} s\n\n| what | count |\n| --- | ---: |\n",
            self.path,
            self.time.as_secs_f64()
        );
        let mut row = |what: &str, count: &dyn std::fmt::Display| {
            // Writing to memory does not fail.
            let _ = writeln!(table, "| {what} | {count} |");
        };
        row("rounds", &self.rounds);
        for (kind, count) in &self.kinds {
            row(&format!("… with {kind}"), count);
        }
        row("flows", &self.flows);
        row("bytes compared", &self.bytes);
        for (key, count) in &self.counts {
            row(&format!("flows that {key}"), count);
        }
        for (path, count) in &self.ends {
            row(&format!("ended on path {path}"), count);
        }
        for (reason, count) in &self.reasons {
            row(&format!("ended for {reason}"), count);
        }
        for (fact, count) in &self.facts {
            row(fact, count);
        }
        if let Some((time, seed, flow)) = self.slowest {
            row(
                "slowest flow",
                &format!("{:.1} s: flow {flow} of the round with seed {seed}", time.as_secs_f64()),
            );
        }
        for kind in Kind::ALL {
            row(kind.name(), &self.of(kind));
        }
        let mut seeds: Vec<_> = self.findings.iter().map(|(seed, _)| seed.to_string()).collect();
        seeds.dedup();
        if !seeds.is_empty() {
            row("seeds of the rounds that failed", &seeds.join(" "));
        }
        table
    }

    /// Leaves the table with what is needed to make it again.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(crate) fn save(&self, folder: &Path, environment: &Environment, seed: u64) -> Result<()> {
        fs::create_dir_all(folder)?;
        let Environment { command, date, commit, kernel, processor, processors, versions, .. } = environment;
        let setu = versions.get("setu").map_or("unknown", String::as_str);
        let page = format!(
            "# Torture: {}\n\n{date}, commit {commit}, {setu}, Linux {kernel}, {processors} × {processor}\n\n\
             ```console\n$ {command}\n```\n\nThe seed was {seed}. A seed draws the same conditions and flows each time; \
             how threads and packets then meet, it does not.\n{}",
            self.path,
            self.table()
        );
        fs::write(folder.join("README.md"), page)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_was_found_and_by_which_seed() {
        let mut tally = Tally::new("sockmap");
        let conditions = Conditions::draw(77);
        let finding = Finding { kind: Kind::Short, text: "flow 1".into() };
        tally.add(&conditions, true, Round { findings: vec![finding], bytes: 5, ..Round::default() });
        let table = tally.table();
        assert_eq!(tally.found(), 1);
        for row in [
            "| short streams that ended cleanly | 1 |",
            "| wrong bytes | 0 |",
            "| bytes compared | 5 |",
            "failed | 77 |",
        ] {
            assert!(table.contains(row), "{row}\n{table}");
        }
        assert!(table.contains("forced hand-over"));
    }
}

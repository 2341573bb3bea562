//! A run as it is kept: raw data, and what is made of it. The raw data is the source; summary, plots and what documents
//! of the repository say of the run can be made again from it at any time, and a check tells when they were not.

mod auto;
mod bars;
mod brief;
mod metric;
mod plots;
#[cfg(test)]
mod sample;
mod summary;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    environment::Environment,
    load::Outcome,
    measure::{Cost, Memory},
    peers::Kind,
    scenarios::Unit,
};

/// The file with the raw data.
const RAW: &str = "raw.json";
/// What is made of a run in a document of the repository lies between these.
const BEGIN: &str = "<!-- bench:begin -->";
const END: &str = "<!-- bench:end -->";

/// All that came of one run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) environment: Environment,
    pub(crate) skipped: Vec<Skip>,
    pub(crate) failed: Vec<Failure>,
    pub(crate) rounds: Vec<Round>,
    /// Scenarios whose rounds are later ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) again: Vec<Again>,
}

/// A scenario that was measured again, on the same machine.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Again {
    pub(crate) scenario: String,
    pub(crate) date: String,
    pub(crate) commit: String,
}

/// A peer that refused a scenario.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Skip {
    pub(crate) scenario: String,
    pub(crate) peer: Kind,
    pub(crate) reason: String,
}

/// A round that was not got through.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) scenario: String,
    pub(crate) peer: Kind,
    pub(crate) number: u32,
    pub(crate) reason: String,
}

/// One round of one peer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Round {
    pub(crate) scenario: String,
    pub(crate) peer: Kind,
    pub(crate) number: u32,
    /// How often it was made until others did not disturb it, or patience ended.
    pub(crate) attempts: u32,
    /// Whether others disturbed even the best attempt.
    pub(crate) disturbed: bool,
    pub(crate) outcome: Outcome,
    pub(crate) cost: Cost,
    /// What was added while connections are held.
    pub(crate) memory: Option<Memory>,
}

impl Run {
    /// A run without rounds yet.
    pub(crate) fn new(environment: Environment) -> Self {
        Self { environment, skipped: Vec::new(), failed: Vec::new(), rounds: Vec::new(), again: Vec::new() }
    }

    /// Takes the rounds of a later run's scenarios in the place of its own.
    ///
    /// # Errors
    /// The later run is of another machine or kernel.
    pub(crate) fn replace(&mut self, later: Self) -> Result<()> {
        let machine = |run: &Self| {
            let Environment { kernel, processor, processors, memory, .. } = &run.environment;
            format!("{processors} × {processor}, {memory} KiB, Linux {kernel}")
        };
        let (here, there) = (machine(self), machine(&later));
        ensure!(here == there, "the run is of {here}, this machine is {there}");
        let mut scenarios: Vec<_> = later.rounds.iter().map(|round| round.scenario.clone()).collect();
        scenarios.dedup();
        for scenario in scenarios {
            self.skipped.retain(|skip| skip.scenario != scenario);
            self.failed.retain(|failure| failure.scenario != scenario);
            self.rounds.retain(|round| round.scenario != scenario);
            self.again.retain(|again| again.scenario != scenario);
            let Environment { date, commit, .. } = &later.environment;
            self.again.push(Again { scenario, date: date.clone(), commit: commit.clone() });
        }
        self.environment.versions.extend(later.environment.versions);
        self.skipped.extend(later.skipped);
        self.rounds.extend(later.rounds);
        Ok(())
    }

    /// Writes raw data, summary and plots.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        fs::write(folder.join(RAW), serde_json::to_string_pretty(self)? + "\n")?;
        write_all(&self.files(folder)?)
    }

    /// Reads the raw data.
    ///
    /// # Errors
    /// When there is none, or none of this kind.
    pub(crate) fn load(folder: &Path) -> Result<Self> {
        let file = folder.join(RAW);
        let text = fs::read_to_string(&file).with_context(|| format!("{} cannot be read", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no run of this bench", file.display()))
    }

    /// What is made of the raw data, by file.
    fn files(&self, folder: &Path) -> Result<Vec<(PathBuf, String)>> {
        let mut files = vec![(folder.join("README.md"), summary::page(self))];
        files.extend(plots::all(self)?.into_iter().map(|(name, svg)| (folder.join(name), svg)));
        Ok(files)
    }

    /// For the terminal.
    pub(crate) fn summary(&self) -> String {
        [summary::tables(self), auto::section(self), bars::table(self), auto::sentence(self)].join("\n")
    }
}

impl Round {
    /// For the terminal.
    pub(crate) fn line(&self, unit: Unit) -> String {
        let Self { outcome: Outcome { work, seconds, latency }, cost, .. } = self;
        let mut line = format!("{:18}", self.peer.name());
        if let Some(memory) = &self.memory {
            let each = |bytes: i64| bytes as f64 / 1024.0 / *work as f64;
            let (resident, buffers) = (each(memory.resident), each(memory.buffers));
            let (slab, all) = (each(memory.slab), each(memory.unavailable));
            line += &format!(
                " KiB each: resident {resident:.1}, buffers {buffers:.1}, slab {slab:.1}, all {all:.1}"
            );
        } else {
            let share = unit.share(*work, *seconds);
            line += &format!(
                " {:>10} {}, busy {:.3} {}, own {:.3}",
                metric::digits(unit.rate(*work, *seconds)),
                unit.rate_name(),
                cost.busy / share,
                unit.cost_name(),
                cost.own / share
            );
        }
        if let Some([_, p99, _]) = latency {
            line += &format!(", p99 {p99:.0} µs");
        }
        if self.attempts > 1 || self.disturbed {
            line +=
                &format!(", attempts: {}{}", self.attempts, if self.disturbed { ", disturbed" } else { "" });
        }
        line
    }
}

/// Makes summary, plots and the parts of documents from a run, or only looks whether they are what would be made.
///
/// # Errors
/// When there is no such run, or something differs.
pub(crate) fn render(folder: &Path, check: bool) -> Result<()> {
    let run = Run::load(folder)?;
    let mut files = run.files(folder)?;
    files.push(with_block("README.md", &brief::block(&run))?);
    files.push(with_block("docs/performance.md", &summary::block(&run, folder))?);
    if !check {
        return write_all(&files);
    }
    let differs = |(path, text): &&(PathBuf, String)| fs::read_to_string(path).is_ok_and(|old| old == *text);
    let wrong: Vec<_> =
        files.iter().filter(|file| !differs(file)).map(|(path, _)| path.display().to_string()).collect();
    let again = format!("cargo xtask bench --render {}", folder.display());
    ensure!(wrong.is_empty(), "not what {again} makes of the raw data: {}", wrong.join(", "));
    Ok(())
}

/// A document of the repository with another text between the markers.
fn with_block(document: &str, block: &str) -> Result<(PathBuf, String)> {
    let text = fs::read_to_string(document).with_context(|| format!("{document} cannot be read"))?;
    let (before, rest) = text.split_once(BEGIN).with_context(|| format!("{document} has no {BEGIN}"))?;
    let (_, after) =
        rest.split_once(END).with_context(|| format!("{document} has no {END} after {BEGIN}"))?;
    Ok((document.into(), format!("{before}{BEGIN}\n{block}{END}{after}")))
}

fn write_all(files: &[(PathBuf, String)]) -> Result<()> {
    for (path, text) in files {
        if let Err(error) = fs::write(path, text) {
            bail!("{} cannot be written: {error}", path.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_that_is_measured_again_is_replaced_whole() {
        let (mut whole, mut later) = (sample::run(), sample::run());
        for scenario in ["bulk-1-down", "bulk-1-up"] {
            sample::rates(&mut whole, scenario, Kind::SetuAuto, &[1.0, 2.0, 3.0]);
        }
        sample::rates(&mut later, "bulk-1-up", Kind::SetuAuto, &[4.0]);
        later.environment.commit = "later".into();
        whole.replace(later).unwrap();
        let of = |scenario: &str| whole.rounds.iter().filter(|round| round.scenario == scenario).count();
        assert_eq!((of("bulk-1-down"), of("bulk-1-up")), (3, 1));
        assert!(summary::page(&whole).contains("- bulk-1-up was measured again on 2026-01-01, commit later"));
        let mut other = sample::run();
        other.environment.kernel = "6.2.0".into();
        assert!(whole.replace(other).unwrap_err().to_string().contains("Linux 6.2.0"));
    }
}

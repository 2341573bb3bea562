//! What came of the cases, as lines, and as the table of docs/kernels.md.

use std::{fmt, fs};

use anyhow::{Context as _, Result};

use super::{Extent, Way};

/// Where the table is, and between which lines.
const PAGE: &str = "docs/kernels.md";
const BEGIN: &str = "<!-- kernels:begin -->";
const END: &str = "<!-- kernels:end -->";

/// What the kernel itself is called among paths.
const KERNEL: &str = "kernel";

/// What came of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Pass,
    Fail,
    Skip,
    /// Setu says that the path cannot be had.
    Refused,
}

/// A case of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Case {
    path: String,
    name: String,
    verdict: Verdict,
    words: String,
}

impl Case {
    /// Reads a line of the guest's.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut words = line.trim_end().strip_prefix("case ")?.splitn(4, ' ');
        let (path, name) = (words.next()?.to_owned(), words.next()?.to_owned());
        let verdict = match words.next()? {
            "pass" => Verdict::Pass,
            "skip" => Verdict::Skip,
            "refused" => Verdict::Refused,
            _ => Verdict::Fail,
        };
        Some(Self { path, name, verdict, words: words.next().unwrap_or_default().trim().to_owned() })
    }

    /// What the kernel said of itself.
    pub(super) fn of_the_kernel(trouble: &str) -> Self {
        let verdict = if trouble.is_empty() { Verdict::Pass } else { Verdict::Fail };
        Self { path: KERNEL.into(), name: "console".into(), verdict, words: trouble.into() }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, name, verdict, words } = self;
        let verdict = match verdict {
            Verdict::Pass => "ok",
            Verdict::Fail => "FAILED",
            Verdict::Skip => "skipped",
            Verdict::Refused => "refused",
        };
        write!(formatter, "{path} {name} {verdict} {words}")
    }
}

/// What came of a kernel.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) version: String,
    pub(super) cases: Vec<Case>,
}

impl Outcome {
    fn of(&self, way: Way) -> impl Iterator<Item = &Case> {
        self.cases.iter().filter(move |case| case.path == way.name())
    }

    /// What must not be: a case that failed, a path that is refused where the kernel could have it, and the other way round.
    pub(super) fn faults(&self, ways: &[Way]) -> Vec<String> {
        let failed = self.cases.iter().filter(|case| case.verdict == Verdict::Fail);
        let mut faults: Vec<_> = failed.map(|case| format!("{} {case}", self.version)).collect();
        for way in ways {
            let refused = self.of(*way).find(|case| case.verdict == Verdict::Refused);
            match (refused, way.is_too_new_for(&self.version)) {
                (Some(case), false) => faults.push(format!("{} {case}", self.version)),
                // Whoever has to change the kernel must be told so, and not to look for privileges.
                (Some(case), true) if !case.words.contains("5.12") => {
                    faults.push(format!(
                        "{} {case}: the words do not name the kernel that it takes",
                        self.version
                    ));
                }
                (None, true) => faults.push(format!("{} {} is not refused", self.version, way.name())),
                _ => {}
            }
            if self.of(*way).next().is_none() {
                faults.push(format!("{} {} was not tried", self.version, way.name()));
            }
        }
        faults
    }

    fn cell(&self, way: Way) -> String {
        let count = |verdict| self.of(way).filter(|case| case.verdict == verdict).count();
        if count(Verdict::Refused) > 0 {
            return "refused, with the reason".into();
        }
        if self.of(way).next().is_none() {
            return "–".into();
        }
        let (passed, failed, skipped) = (count(Verdict::Pass), count(Verdict::Fail), count(Verdict::Skip));
        let mut cell = format!("{passed} of {}", passed + failed + skipped);
        if skipped > 0 {
            cell += &format!(", {skipped} skipped");
        }
        if failed > 0 {
            cell += &format!(", **{failed} failed**");
        }
        cell
    }
}

/// A row for each kernel.
pub(super) fn summary(results: &[Outcome]) -> String {
    let mut text =
        "| kernel | userspace | sockmap | wire | its own log |\n| --- | --- | --- | --- | --- |\n".to_owned();
    for result in results {
        let [userspace, sockmap, wire] = Way::EVERY.map(|way| result.cell(way));
        let is_quiet = !result.cases.iter().any(|case| case.path == KERNEL && case.verdict == Verdict::Fail);
        let log = if is_quiet { "clean" } else { "**trouble**" };
        text += &format!("| {} | {userspace} | {sockmap} | {wire} | {log} |\n", result.version);
    }
    text
}

/// Puts the table, and what did not pass, into the page.
pub(super) fn write(results: &[Outcome], extent: Extent) -> Result<()> {
    let page = fs::read_to_string(PAGE)?;
    let (before, rest) = page.split_once(BEGIN).with_context(|| format!("{PAGE} has no line {BEGIN}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("{PAGE} has no line {END}"))?;
    let command = match extent {
        Extent::Few => "cargo xtask kernels --all --few",
        Extent::Every => "cargo xtask kernels --all",
    };
    let mut text = format!("By `{command}`; cases that passed, of all:\n\n{}", summary(results));
    let other = results.iter().flat_map(|result| {
        let cases = result.cases.iter().filter(|case| case.verdict != Verdict::Pass);
        cases.map(|case| {
            format!("- {}: {}\n", result.version, case.to_string().trim_end().replace('|', "\\|"))
        })
    });
    let other: String = other.collect();
    if !other.is_empty() {
        text +=
            &format!("\nWhat was refused, skipped or failed, in the words of setu or the test:\n\n{other}");
    }
    Ok(fs::write(PAGE, format!("{before}{BEGIN}\n\n{text}\n{END}{after}"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(version: &str, lines: &[&str]) -> Outcome {
        Outcome {
            version: version.into(),
            cases: lines.iter().filter_map(|line| Case::parse(line)).collect(),
        }
    }

    #[test]
    fn what_failed_or_was_not_tried_is_a_fault() {
        let one = outcome(
            "6.1.0",
            &["case sockmap check pass", "case sockmap a::b fail status 101: no\r", "guest ended 0"],
        );
        assert_eq!(one.faults(&[Way::Sockmap]), ["6.1.0 sockmap a::b FAILED status 101: no"]);
        assert_eq!(one.cell(Way::Sockmap), "1 of 2, **1 failed**");
        assert_eq!(one.faults(&[Way::Wire])[1..], ["6.1.0 wire was not tried"]);
    }

    #[test]
    fn a_path_is_refused_where_the_kernel_cannot_have_it_and_nowhere_else() {
        let refused = |words| format!("case wire check refused {words}");
        let faults = |version, line: &str| outcome(version, &[line]).faults(&[Way::Wire]).len();
        assert_eq!(faults("5.10.0-46", &refused("it takes Linux 5.12")), 0);
        assert_eq!(faults("5.10.0-46", &refused("as root")), 1);
        assert_eq!(faults("5.10.0-46", "case wire check pass"), 1);
        assert_eq!(faults("6.1.0", &refused("it takes Linux 5.12")), 1);
    }
}

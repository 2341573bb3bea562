//! What was looked at, and how it is told: the conclusion first, then all that it rests on.

use std::fmt::Write as _;

use serde::Serialize;

use super::conclusion::Conclusion;
use crate::log;

/// What a line means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It works.
    Ok,
    /// It is so, and need not be otherwise.
    Note,
    /// It works, but something should be looked at.
    Warn,
    /// It does not work.
    Fail,
}

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// The running setu.
    Setu,
    /// WhatsApp's servers, without setu between.
    Upstreams,
    /// The ports that phones use.
    Ports,
    /// The machine.
    Machine,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub group: Group,
    /// How it is.
    pub level: Level,
    /// What was seen.
    pub what: String,
    /// Where it was seen, if that is not in `what`: several places where it was the same.
    pub at: Vec<String>,
    /// What to do about it; empty where nothing is to be done, or `what` says it.
    pub remedy: String,
}

impl Finding {
    pub(super) fn ok(group: Group, what: impl Into<String>) -> Self {
        Self::new(group, Level::Ok, what, "")
    }

    pub(super) fn note(group: Group, what: impl Into<String>) -> Self {
        Self::new(group, Level::Note, what, "")
    }

    pub(super) fn warn(group: Group, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(group, Level::Warn, what, remedy)
    }

    pub(super) fn fail(group: Group, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(group, Level::Fail, what, remedy)
    }

    /// What has failed for a reason that is told elsewhere.
    pub(super) fn explained(self) -> Self {
        match self.level {
            Level::Fail => Self { at: self.at, ..Self::note(self.group, "no answer, for the reason above") },
            _ => self,
        }
    }

    fn new(group: Group, level: Level, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { group, level, what: what.into(), at: Vec::new(), remedy: remedy.into() }
    }

    pub(super) fn at(mut self, place: impl Into<String>) -> Self {
        self.at.push(place.into());
        self
    }
}

/// Everything that was looked at, and what it comes to.
#[derive(Debug)]
pub struct Diagnosis {
    /// What it comes to.
    pub conclusion: Conclusion,
    findings: Vec<Finding>,
}

impl Diagnosis {
    /// What was seen alike in several places becomes one line, and where phones are served nothing has failed that they
    /// need.
    pub(super) fn new(conclusion: Conclusion, all: Vec<Finding>) -> Self {
        let mut findings: Vec<Finding> = Vec::new();
        for mut finding in all {
            if conclusion.works() && finding.level == Level::Fail {
                finding.level = Level::Warn;
            }
            let same = |other: &&mut Finding| {
                (other.group, other.level, &other.what, &other.remedy)
                    == (finding.group, finding.level, &finding.what, &finding.remedy)
            };
            match findings.iter_mut().find(same) {
                Some(other) => {
                    finding.at.retain(|place| !other.at.contains(place));
                    other.at.append(&mut finding.at);
                }
                None => findings.push(finding),
            }
        }
        findings.sort_by_key(|finding| finding.group);
        Self { conclusion, findings }
    }

    /// For the terminal.
    #[must_use]
    pub fn text(&self) -> String {
        // Writing to a string cannot fail.
        let mut text = String::new();
        let _ = writeln!(text, "{}\n→ {}", self.conclusion.sentence(), self.conclusion.advice());
        let mut group = None;
        for finding in &self.findings {
            if group != Some(finding.group) {
                group = Some(finding.group);
                let _ = writeln!(text, "\n{}", finding.group.title());
            }
            // Some of it is what others say.
            let what: String = finding.what.chars().map(log::harmless).collect();
            let _ = writeln!(text, "  {:<5} {what}", finding.level.word());
            if !finding.at.is_empty() {
                let _ = writeln!(text, "        at {}", finding.at.join(", "));
            }
            if !finding.remedy.is_empty() {
                let _ = writeln!(text, "        → {}", finding.remedy);
            }
        }
        text
    }

    /// For programs.
    ///
    /// # Errors
    /// Writing to a string does not fail.
    pub fn json(&self) -> serde_json::Result<String> {
        let value = serde_json::json!({
            "verdict": self.conclusion.key(),
            "works": self.conclusion.works(),
            "exit_code": self.conclusion.exit_code(),
            "sentence": self.conclusion.sentence(),
            "advice": self.conclusion.advice(),
            "findings": self.findings,
        });
        serde_json::to_string_pretty(&value).map(|text| text + "\n")
    }
}

impl Level {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

impl Group {
    const fn title(self) -> &'static str {
        match self {
            Self::Setu => "setu",
            Self::Upstreams => "WhatsApp's servers, from this machine",
            Self::Ports => "Ports, as phones use them",
            Self::Machine => "This machine",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::doctor::conclusion::Seen;

    #[test]
    fn what_is_the_same_is_told_once_and_the_conclusion_first() {
        let closed = |port: &str| Finding::fail(Group::Ports, "closed", "open it").at(port);
        let all = || vec![closed("443"), Finding::ok(Group::Setu, "runs"), closed("587"), closed("7777")];
        let diagnosis = Diagnosis::new(Conclusion::NotRunning, all());
        let wanted = format!(
            "{}\n→ {}\n\nsetu\n  ok    runs\n\nPorts, as phones use them\n  FAIL  closed\n        at 443, 587, 7777\n        \
             → open it\n",
            Conclusion::NotRunning.sentence(),
            Conclusion::NotRunning.advice()
        );
        assert_eq!(diagnosis.text(), wanted);
        let json: serde_json::Value = serde_json::from_str(&diagnosis.json().unwrap()).unwrap();
        assert_eq!((&json["verdict"], &json["exit_code"]), (&"not_running".into(), &10.into()));
        assert_eq!(json["findings"][1]["at"][2], "7777");
        // Where phones are served, nothing that they need has failed.
        assert!(!Diagnosis::new(Conclusion::Works(Seen::Inside), all()).text().contains("FAIL"));
    }
}

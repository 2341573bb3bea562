//! What was looked at, and what came of it.

use std::fmt::Write as _;

use serde::Serialize;

/// What a line means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// It works.
    #[serde(rename = "ok")]
    Ok,
    /// It works, but something should be looked at.
    #[serde(rename = "warn")]
    Warn,
    /// It does not work.
    #[serde(rename = "FAIL")]
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// How it is.
    pub verdict: Verdict,
    /// What was looked at, and what was seen.
    pub what: String,
    /// What to do about it; empty where nothing is to be done, or `what` says it.
    pub remedy: String,
}

impl Finding {
    pub(super) fn ok(what: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, what: what.into(), remedy: String::new() }
    }

    pub(super) fn warn(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, what: what.into(), remedy: remedy.into() }
    }

    pub(super) fn fail(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, what: what.into(), remedy: remedy.into() }
    }
}

/// Everything that was looked at.
#[derive(Debug)]
pub struct Diagnosis(pub Vec<Finding>);

impl Diagnosis {
    /// Whether nothing failed.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.0.iter().all(|finding| finding.verdict != Verdict::Fail)
    }

    /// For the terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for Finding { verdict, what, remedy } in &self.0 {
            let verdict = match verdict {
                Verdict::Ok => "ok",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{verdict:<5} {what}");
            if !remedy.is_empty() {
                let _ = writeln!(text, "      → {remedy}");
            }
        }
        let count = |verdict| self.0.iter().filter(|finding| finding.verdict == verdict).count();
        let [ok, warn, fail] = [Verdict::Ok, Verdict::Warn, Verdict::Fail].map(count);
        let _ = writeln!(text, "{ok} ok, {warn} to look at, {fail} failed");
        text
    }

    /// For programs.
    ///
    /// # Errors
    /// Writing to a string does not fail.
    pub fn json(&self) -> serde_json::Result<String> {
        let value = serde_json::json!({ "healthy": self.is_healthy(), "findings": self.0 });
        serde_json::to_string_pretty(&value).map(|text| text + "\n")
    }
}

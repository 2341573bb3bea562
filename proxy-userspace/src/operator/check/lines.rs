//! What is said, and what it means.

/// What something that was found means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is as it should be.
    Fine,
    /// Something is missing that setu can do without.
    Note,
    /// Something is missing without which setu does not start.
    Bad,
}

/// What was found, in the order in which it was looked for.
pub(crate) struct Lines(pub(crate) Vec<(Verdict, String)>);

impl Lines {
    pub(super) fn fine(&mut self, what: &str) {
        self.0.push((Verdict::Fine, what.into()));
    }

    pub(super) fn note(&mut self, what: &str) {
        self.0.push((Verdict::Note, what.into()));
    }

    pub(super) fn bad(&mut self, what: &str) {
        self.0.push((Verdict::Bad, what.into()));
    }
}

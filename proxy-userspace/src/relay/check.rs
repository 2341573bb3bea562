//! What the self-test of a path tells.

/// A check and what came of it.
#[derive(Debug)]
pub struct Check {
    /// Its name, for the log and `setu check`.
    pub name: &'static str,
    /// What went wrong.
    pub result: Result<(), String>,
}

//! What can be wrong with a configuration. Each error says where, what, and what to do.

use std::fmt;

use thiserror::Error;

/// A place in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file's name as the operator gave it.
    pub file: String,
    /// From 1; 0 when it concerns no line.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => formatter.write_str(&self.file),
            line => write!(formatter, "{}:{line}", self.file),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{place}: cannot be read: {error}; {remedy}")]
    Unreadable {
        /// The file.
        place: Place,
        /// The system's words.
        error: String,
        /// What to do.
        remedy: &'static str,
    },
    /// No TOML, a key that does not exist or is missing, or a value that cannot be.
    #[error("{place}: {key}: {problem}; {remedy}")]
    Value {
        /// The line.
        place: Place,
        /// The key at fault, after the names of its tables.
        key: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
}

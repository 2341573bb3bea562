//! Why privileges could not be dropped.

use std::io;

use thiserror::Error;

/// Why privileges could not be dropped.
#[derive(Debug, Error)]
pub enum PrivilegeError {
    /// The user of the configuration is not there.
    #[error("security.user: there is no user \"{0}\"; create it (useradd --system {0}), or name another")]
    NoSuchUser(String),
    /// The user of the configuration cannot be taken on.
    #[error(
        "security.user: setu cannot become \"{user}\": {error}; start it as root, or as that user without the key"
    )]
    User {
        /// Its name.
        user: String,
        /// The kernel's words.
        error: io::Error,
    },
    /// The capabilities stay.
    #[error("capabilities cannot be dropped: {0}")]
    Capabilities(#[source] io::Error),
    /// Memory could be dumped.
    #[error("core dumps, which would hold clients' addresses, cannot be forbidden: {0}")]
    Dumpable(#[source] io::Error),
    /// A thread would keep what the others give up.
    #[error("privileges cannot be dropped: {0} threads run already")]
    Threads(usize),
}

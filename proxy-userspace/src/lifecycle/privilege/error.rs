//! Why privileges could not be dropped.

use std::io;

use thiserror::Error;

use crate::sys::user::NoUser;

/// Why privileges could not be dropped.
#[derive(Debug, Error)]
pub enum PrivilegeError {
    /// There is nobody to become.
    #[error(transparent)]
    NoUser(#[from] NoUser),
    /// The state directory is others' as well.
    #[error(
        "tls.state_dir: {path} {why}, and all of it would be setu's user's; name a folder for setu alone, such as {path}/setu"
    )]
    Shared {
        /// The folder.
        path: String,
        /// What is wrong with it.
        why: String,
    },
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

impl PrivilegeError {
    /// Whether the configuration is to be changed.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        matches!(self, Self::NoUser(NoUser::Unknown(_)) | Self::Shared { .. })
    }
}

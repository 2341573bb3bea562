//! What the sandbox lets this process read, for messages: the kernel's "permission denied" does not say that it was it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The folders, once there is a sandbox.
static READABLE: OnceLock<Vec<PathBuf>> = OnceLock::new();

/// From now on nothing but these can be read.
pub(crate) fn confined_to(folders: Vec<PathBuf>) {
    // There is one sandbox in a process.
    let _ = READABLE.set(folders);
}

/// Whether it was the sandbox that kept a file from being read.
pub(crate) fn is_to_blame(path: &Path, error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
        && READABLE.get().is_some_and(|folders| {
            // To find out where a link leads needs the rights of the user alone: what lacks these is not the sandbox's.
            let real = path.canonicalize();
            real.is_ok_and(|real| !folders.iter().any(|folder| real.starts_with(folder)))
        })
}

//! Files in folders where others may write: what is there may be a link that leads root elsewhere.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::fchown,
};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};

use super::process::random;

/// What may be done with a new file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Readers {
    /// Its owner alone reads it.
    Owner,
    /// Everybody may read it, unless the mask of the process says otherwise.
    All,
}

/// Puts a file into a folder that is there either wholly or not at all, given to a user and a group if these are named.
/// Nothing is opened that was there before: a link of that name is replaced, and not followed.
///
/// # Errors
/// The kernel's. What was there is still there then.
pub(crate) fn replace_file(
    folder: &File,
    name: &str,
    bytes: &[u8],
    readers: Readers,
    owner: Option<(u32, u32)>,
) -> io::Result<()> {
    let mut temporary = format!("{name}.");
    for byte in *random::<8>() {
        // Writing to a string cannot fail.
        let _ = write!(temporary, "{byte:02x}");
    }
    temporary += ".tmp";
    let mode = match readers {
        Readers::Owner => Mode::RUSR | Mode::WUSR,
        Readers::All => Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH,
    };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut new = File::from(openat(folder, &*temporary, flags, mode)?);
    let written = (|| {
        new.write_all(bytes)?;
        if let Some((user, group)) = owner {
            fchown(&new, Some(user), Some(group))?;
        }
        new.sync_all()?;
        renameat(folder, &*temporary, folder, name)?;
        folder.sync_all()
    })();
    if written.is_err() {
        // What cannot be removed was not made.
        let _ = unlinkat(folder, &*temporary, AtFlags::empty());
    }
    written
}

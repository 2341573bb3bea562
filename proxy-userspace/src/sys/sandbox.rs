//! What the sandbox lets this process read, for messages: the kernel's "permission denied" does not say that it was it.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path, sync::OnceLock};

/// What is to be done about it.
pub(crate) const REMEDY: &str = "the sandbox that setu made at its start does not reach there: restart setu";

/// A file or folder, by device and inode: a rule is for what had a name when it was made, not for what has it later. As
/// long as there is a rule for it the kernel gives its inode to no other.
pub(crate) type Place = (u64, u64);

/// What can be read with all that is below it, once there is a sandbox.
static READABLE: OnceLock<Vec<Place>> = OnceLock::new();

/// From now on nothing but what is at and below these can be read.
pub(crate) fn confined_to(places: Vec<Place>) {
    // There is one sandbox in a process.
    let _ = READABLE.set(places);
}

/// What can be read, if there is a sandbox.
pub(crate) fn reach() -> Option<&'static [Place]> {
    READABLE.get().map(Vec::as_slice)
}

/// What has a name now.
pub(crate) fn place(path: &Path) -> Option<Place> {
    let there = fs::metadata(path).ok()?;
    Some((there.dev(), there.ino()))
}

/// Whether a file is at or below one of these, wherever links lead.
///
/// # Errors
/// Where it leads cannot be seen.
pub(crate) fn is_within(path: &Path, places: &[Place]) -> io::Result<bool> {
    let real = path.canonicalize()?;
    Ok(real.ancestors().any(|above| place(above).is_some_and(|place| places.contains(&place))))
}

/// Whether it was the sandbox that kept a file from being read.
pub(crate) fn is_to_blame(path: &Path, error: &io::Error) -> bool {
    // To find out where a link leads needs the rights of the user alone: what lacks these is not the sandbox's.
    let is_beyond = |places| is_within(path, places).is_ok_and(|is_within| !is_within);
    error.kind() == io::ErrorKind::PermissionDenied && reach().is_some_and(is_beyond)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_has_a_name_later_is_not_what_had_it() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        let (file, link) = (old.join("below/file"), folder.path().join("link"));
        fs::create_dir_all(old.join("below")).unwrap();
        fs::write(&file, "").unwrap();
        symlink(&file, &link).unwrap();
        let places = [place(&old).unwrap()];
        assert!(is_within(&file, &places).unwrap() && is_within(&link, &places).unwrap());
        assert!(!is_within(folder.path(), &places).unwrap());
        fs::rename(&old, &new).unwrap();
        assert!(is_within(&new.join("below/file"), &places).unwrap());
        fs::create_dir_all(old.join("below")).unwrap();
        fs::write(&file, "").unwrap();
        assert!(!is_within(&file, &places).unwrap() && !is_within(&link, &places).unwrap());
        assert!(is_within(&folder.path().join("nowhere"), &places).is_err());
    }
}

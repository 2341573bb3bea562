//! The folder in which setu keeps things: its user owns it, and root works in it, at the start and for `setu cert new`.
//! Whoever has become that user must not lead root anywhere: no link in it is followed, nothing is opened for writing that
//! was there before, and nothing is given to the user but what is setu's, by name.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, openat, unlinkat},
    io::Errno,
    process::geteuid,
};

use super::{
    replace_file::{Readers, replace_file},
    user::User,
};

/// The certificate that setu makes, and its key.
pub(crate) const CERTIFICATE: &str = "certificate.pem";
/// Where a successor asks for the sockets.
pub(crate) const HANDOVER: &str = "handover.sock";
/// What it has to know.
pub(crate) const HANDOVER_SECRET: &str = "handover.secret";
/// What filesystems have by themselves.
const LOST_AND_FOUND: &str = "lost+found";
/// Bytes of a file of setu's, at most.
const MOST: u64 = 1 << 20;
/// Links on the way to the folder, at most (path_resolution(7)).
const LINKS: u32 = 40;
/// Others than the owner and the group may write.
const OTHERS_WRITE: u32 = 0o002;

/// The folder, held open: what its name leads to may change.
#[derive(Debug)]
pub(crate) struct StateDir {
    folder: File,
    owner: u32,
}

impl StateDir {
    /// Opens it. Made, it is for the owner alone.
    ///
    /// # Errors
    /// It cannot be made or opened, or is that of another user, who could give this process any key.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        // What it lies in is as any folder: its user has to get there.
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Self::there(path)
    }

    /// As [`StateDir::open`], and makes nothing.
    ///
    /// # Errors
    /// As [`StateDir::open`]'s.
    pub(crate) fn there(path: &Path) -> io::Result<Self> {
        // It may be a link, as that of a unit with DynamicUser is: where it lies is the operator's.
        let folder = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path)?;
        let (owner, own) = (folder.metadata()?.uid(), geteuid());
        if !own.is_root() && ![0, own.as_raw()].contains(&owner) {
            let text = format!("it belongs to user {owner}, and setu runs as {own}");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        Ok(Self { folder, owner })
    }

    /// What is in a file of setu's.
    ///
    /// # Errors
    /// It cannot be read, or is not setu's: a link, or a file of somebody else.
    pub(crate) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let file = self.open_file(name)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || ![0, geteuid().as_raw(), self.owner].contains(&metadata.uid()) {
            let text = format!("it is no file, or one of user {}", metadata.uid());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        let mut bytes = Vec::new();
        file.take(MOST).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn open_file(&self, name: &str) -> io::Result<File> {
        // It may be a pipe that nobody writes into.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match openat(&self.folder, name, flags, Mode::empty()) {
            Ok(file) => Ok(file.into()),
            Err(Errno::LOOP) => Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is a link")),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a file that is there either wholly or not at all, and that only setu's user can read.
    ///
    /// # Errors
    /// The kernel's. What was there is still there then.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let folder = self.folder.metadata()?;
        // A setu that is root no longer is to read it.
        let given = geteuid().is_root() && folder.uid() != 0;
        let owner = given.then(|| (folder.uid(), folder.gid()));
        replace_file(&self.folder, name, bytes, Readers::Owner, owner)
    }

    /// Gives it to a user, with what root has written there. What another user had there before is not trusted: it is
    /// taken away.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn give(&self, user: &User) -> io::Result<()> {
        if self.owner != user.uid {
            fchown(&self.folder, Some(user.uid), Some(user.gid))?;
        }
        for name in [CERTIFICATE, HANDOVER_SECRET] {
            let file = match self.open_file(name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file,
            };
            let metadata = file.as_ref().ok().map(File::metadata).transpose()?;
            match (file, metadata) {
                // A second name of somebody else's file is none of setu's.
                (Ok(file), Some(is))
                    if is.is_file() && is.nlink() == 1 && [0, user.uid].contains(&is.uid()) =>
                {
                    fchown(&file, Some(user.uid), Some(user.gid))?;
                }
                _ => unlinkat(&self.folder, name, AtFlags::empty())?,
            }
        }
        Ok(())
    }
}

/// Why a folder is not one to give to a user, as far as it is there: it is shared with others, or others say where it is.
///
/// # Errors
/// It cannot be looked at.
pub(crate) fn why_not_given(path: &Path, user: &User) -> io::Result<Option<String>> {
    if let Some(link) = foreign_link(path, LINKS)? {
        return Ok(Some(format!("is behind the link {}, which is not root's", link.display())));
    }
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata?,
    };
    if !metadata.is_dir() {
        return Ok(Some("is no folder".into()));
    }
    if metadata.uid() == user.uid {
        return Ok(None);
    }
    if metadata.mode() & OTHERS_WRITE != 0 {
        return Ok(Some("can be written by everybody".into()));
    }
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if !is_own(&name) {
            return Ok(Some(format!("has {name:?} in it, which is not setu's")));
        }
    }
    Ok(None)
}

/// A link on the way to a folder that another than root, or who this is, can point elsewhere. At most so many are followed.
fn foreign_link(path: &Path, most: u32) -> io::Result<Option<PathBuf>> {
    let path = std::path::absolute(path)?;
    let mut way = PathBuf::new();
    let mut parts = path.components();
    while let Some(part) = parts.next() {
        way.push(part);
        // What is not there yet is made by root.
        let Ok(is) = fs::symlink_metadata(&way) else { return Ok(None) };
        if !is.is_symlink() {
            continue;
        }
        if ![0, geteuid().as_raw()].contains(&is.uid()) {
            return Ok(Some(way));
        }
        let most = most.checked_sub(1).ok_or(Errno::LOOP)?;
        let target = fs::read_link(&way)?;
        way.pop();
        return foreign_link(&way.join(target).join(parts.as_path()), most);
    }
    Ok(None)
}

/// The user that a folder belongs to, if it is there.
pub(crate) fn owner(path: &Path) -> Option<u32> {
    fs::metadata(path).ok().map(|metadata| metadata.uid())
}

/// Whether setu, this version or one before, makes files of this name.
fn is_own(name: &OsString) -> bool {
    let name = name.to_string_lossy();
    let is_temporary = |name: &str| {
        let part = name.strip_prefix("certificate.").or_else(|| name.strip_prefix("handover."));
        part.is_some_and(|part| part.ends_with(".tmp"))
    };
    [CERTIFICATE, HANDOVER, HANDOVER_SECRET, LOST_AND_FOUND].contains(&&*name) || is_temporary(&name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn user(uid: u32) -> User {
        User { name: "made".into(), uid, gid: uid }
    }

    fn is_root() -> bool {
        if geteuid().is_root() {
            return true;
        }
        println!("skipped: only root can give files away");
        false
    }

    fn owner_of(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().uid()
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/state");
        let state = StateDir::open(&path).unwrap();
        assert_eq!(state.read(CERTIFICATE).unwrap_err().kind(), io::ErrorKind::NotFound);
        for text in ["one", "two"] {
            state.write(CERTIFICATE, text.as_bytes()).unwrap();
            assert_eq!(state.read(CERTIFICATE).unwrap(), text.as_bytes());
        }
        assert_eq!(fs::metadata(path.join(CERTIFICATE)).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        assert_ne!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o001, 0, "its user gets there");
        // A folder cannot be written over.
        fs::create_dir(path.join(HANDOVER_SECRET)).unwrap();
        state.write(HANDOVER_SECRET, b"x").unwrap_err();
        let names = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(
            names.collect::<std::collections::BTreeSet<_>>(),
            [CERTIFICATE, HANDOVER_SECRET].map(OsString::from).into()
        );
    }

    #[test]
    fn links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, outside) = (folder.path().join("state"), folder.path().join("outside"));
        fs::write(&outside, "root's").unwrap();
        let state = StateDir::open(&path).unwrap();
        symlink(&outside, path.join(CERTIFICATE)).unwrap();
        assert_eq!(state.read(CERTIFICATE).unwrap_err().to_string(), "it is a link");
        state.write(CERTIFICATE, b"setu's").unwrap();
        assert_eq!(fs::read_to_string(&outside).unwrap(), "root's");
        assert_eq!(state.read(CERTIFICATE).unwrap(), b"setu's");
    }

    #[test]
    fn the_user_gets_what_is_setus_alone() {
        if !is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (path, outside) = (folder.path().join("state"), folder.path().join("outside"));
        fs::write(&outside, "root's").unwrap();
        let state = StateDir::open(&path).unwrap();
        state.write(CERTIFICATE, b"setu's").unwrap();
        // A second name of a file elsewhere, in the place of one of setu's; and a file of no name of its.
        fs::hard_link(&outside, path.join(HANDOVER_SECRET)).unwrap();
        fs::write(path.join("another"), "").unwrap();
        state.give(&user(54_321)).unwrap();
        let owners =
            [&path, &path.join(CERTIFICATE), &path.join("another"), &outside].map(|path| owner_of(path));
        assert_eq!(owners, [54_321, 54_321, 0, 0]);
        assert!(!path.join(HANDOVER_SECRET).exists());
        // What root writes later is that user's as well.
        state.write(HANDOVER_SECRET, b"later").unwrap();
        assert_eq!(owner_of(&path.join(HANDOVER_SECRET)), 54_321);
        // The next user does not trust the one before.
        StateDir::open(&path).unwrap().give(&user(54_322)).unwrap();
        assert_eq!(owner_of(&path), 54_322);
        assert!(!path.join(CERTIFICATE).exists());
    }

    #[test]
    fn shared_folders_are_not_given() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let why = |uid| why_not_given(path, &user(uid)).unwrap();
        fs::create_dir(path.join(LOST_AND_FOUND)).unwrap();
        fs::write(path.join("certificate.4711.tmp"), "").unwrap();
        assert_eq!(why(54_321), None);
        fs::write(path.join("passwd"), "").unwrap();
        assert_eq!(why(54_321).unwrap(), "has \"passwd\" in it, which is not setu's");
        assert_eq!(why(owner_of(path)), None, "it has it already");
        fs::set_permissions(path, fs::Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(why(54_321).unwrap(), "can be written by everybody");
        assert_eq!(why_not_given(&path.join("none"), &user(1)).unwrap(), None);
        assert_eq!(why_not_given(&path.join("passwd"), &user(1)).unwrap().unwrap(), "is no folder");
    }

    #[test]
    fn a_folder_behind_anothers_link_is_not_given() {
        if !is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (roots, link) = (folder.path().join("roots"), folder.path().join("link"));
        fs::create_dir(&roots).unwrap();
        symlink(&roots, &link).unwrap();
        assert_eq!(why_not_given(&link.join("state"), &user(54_321)).unwrap(), None, "root's");
        std::os::unix::fs::lchown(&link, Some(54_321), None).unwrap();
        for path in [&link, &link.join("state")] {
            let why = why_not_given(path, &user(54_321)).unwrap().unwrap();
            assert!(why.contains("behind the link") && why.contains("not root's"), "{why}");
        }
        assert_eq!(why_not_given(&roots, &user(54_321)).unwrap(), None);
        // Behind one of root's as well.
        symlink(&link, folder.path().join("first")).unwrap();
        assert!(why_not_given(&folder.path().join("first/state"), &user(54_321)).unwrap().is_some());
        symlink(folder.path().join("loop"), folder.path().join("loop")).unwrap();
        why_not_given(&folder.path().join("loop"), &user(54_321)).unwrap_err();
    }

    #[test]
    fn a_file_of_somebody_else_is_not_believed() {
        if !is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        state.write(CERTIFICATE, b"a key of his").unwrap();
        std::os::unix::fs::chown(folder.path().join(CERTIFICATE), Some(54_321), None).unwrap();
        assert!(state.read(CERTIFICATE).unwrap_err().to_string().contains("one of user 54321"));
    }
}

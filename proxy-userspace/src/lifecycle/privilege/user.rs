//! Whom root becomes, and what that user must own.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown},
    path::Path,
};

use rustix::{
    fs::{Gid, Uid},
    process::geteuid,
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};
use tracing::warn;

use super::error::PrivilegeError;

/// The user of packages.
const OWN: &str = "setu";
/// Who is nobody where /etc/passwd does not say, as in a container from scratch.
const NOBODY: u32 = 65_534;

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    name: String,
    uid: u32,
    gid: u32,
}

impl User {
    /// Whom to become: `name`, or as root `setu`, or nobody. `None` to stay who this is.
    ///
    /// # Errors
    /// There is no such user.
    pub(super) fn wanted(name: Option<&str>) -> Result<Option<Self>, PrivilegeError> {
        // /etc/passwd has system users. Other sources (NSS) would need a dynamic glibc.
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let user = match name {
            Some(name) => find(&passwd, name).ok_or_else(|| PrivilegeError::NoSuchUser(name.into()))?,
            None if !geteuid().is_root() => return Ok(None),
            None => find(&passwd, OWN).or_else(|| find(&passwd, "nobody")).unwrap_or(Self {
                name: "nobody".into(),
                uid: NOBODY,
                gid: NOBODY,
            }),
        };
        Ok((user.uid != geteuid().as_raw()).then_some(user))
    }

    /// Gives the state directory, with what root or the one who had it has written there, to this user.
    pub(super) fn own(&self, state_dir: &Path) {
        if let Err(error) = self.try_own(state_dir) {
            warn!(state_dir = %state_dir.display(), %error, "setu's user will not be able to write there");
        }
    }

    fn try_own(&self, state_dir: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
        let directory = open(state_dir)?;
        let before = directory.metadata()?.uid();
        fchown(&directory, Some(self.uid), Some(self.gid))?;
        for entry in fs::read_dir(state_dir)? {
            // Not a symbolic link, nor a second name of somebody else's file, which an earlier setu that was taken over
            // could have put here.
            let Ok(file) = open(&entry?.path()) else { continue };
            let metadata = file.metadata()?;
            if metadata.is_file() && [0, before].contains(&metadata.uid()) && metadata.nlink() == 1 {
                fchown(&file, Some(self.uid), Some(self.gid))?;
            }
        }
        Ok(())
    }

    /// Becomes this user, and returns its name. Without `must` it may also not be allowed, as in a container that lacks
    /// CAP_SETUID or has one user only: that is said in a warning.
    pub(super) fn assume(&self, must: bool) -> Result<Option<&str>, PrivilegeError> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        // The groups first: they need the privilege that goes with the user.
        let result = set_thread_groups(&[])
            .and_then(|()| set_thread_res_gid(gid, gid, gid))
            .and_then(|()| set_thread_res_uid(uid, uid, uid));
        match result {
            Ok(()) => Ok(Some(&self.name)),
            Err(error) if must => Err(PrivilegeError::User { user: self.name.clone(), error: error.into() }),
            Err(error) => {
                warn!(user = self.name, %error, "setu stays root, without its privileges; start it as another user");
                Ok(None)
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// A user by its name or its number, which need not be in the file.
fn find(passwd: &str, wanted: &str) -> Option<User> {
    let number = wanted.parse().ok();
    let entries = passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(User { name: name.into(), uid, gid })
    });
    entries
        .into_iter()
        .find(|user| user.name == wanted || Some(user.uid) == number)
        .or_else(|| number.map(|uid| User { name: wanted.into(), uid, gid: uid }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n# no entry\nsetu:x:998:997::/:/none\nbad:x:x:1\n";
        let setu = Some(User { name: "setu".into(), uid: 998, gid: 997 });
        assert_eq!(find(passwd, "setu"), setu);
        assert_eq!(find(passwd, "998"), setu);
        assert_eq!(find(passwd, "7"), Some(User { name: "7".into(), uid: 7, gid: 7 }));
        assert_eq!(find(passwd, "bad"), None);
        assert_eq!(find("", "setu"), None);
    }
}

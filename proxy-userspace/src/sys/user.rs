//! Whom root becomes.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    thread,
};

use procfs::process::{self, Process};
use rustix::{
    fs::{Gid, Uid},
    process::geteuid,
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};
use thiserror::Error;

use super::process::random;

/// The user of packages.
const OWN: &str = "setu";
/// Numbers that systemd, too, takes for services that have no user (`DynamicUser=`, systemd.exec(5)).
const DYNAMIC: std::ops::RangeInclusive<u32> = 61_184..=65_519;
/// Where it says which it has taken.
const TAKEN: &str = "/run/systemd/dynamic-uid";

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// There is none to become.
#[derive(Debug, Error)]
pub enum NoUser {
    /// The user of the configuration is not there.
    #[error("security.user: there is no user \"{0}\"; create it (useradd --system {0}), or name another")]
    Unknown(String),
    /// All numbers for users without a name are taken.
    #[error(
        "there is no user \"{OWN}\", and no number that no other has; create it (useradd --system {OWN}), or name one by \
             security.user"
    )]
    NoneFree,
}

impl User {
    /// Whom to become: `name`, or as root `setu`, or a user that nobody else is: other services' `nobody` could look into
    /// setu's files and stop it. The one that has the state directory stays. `None` to stay who this is.
    ///
    /// # Errors
    /// There is no such user.
    pub(crate) fn wanted(name: Option<&str>, owner: Option<u32>) -> Result<Option<Self>, NoUser> {
        // /etc/passwd has system users. Other sources (NSS) would need a dynamic glibc.
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let user = match name {
            Some(name) => find(&passwd, name).ok_or_else(|| NoUser::Unknown(name.into()))?,
            None if !geteuid().is_root() => return Ok(None),
            None => match find(&passwd, OWN) {
                Some(user) => user,
                None => unused(owner, |uid| is_used(&passwd, uid)).ok_or(NoUser::NoneFree)?,
            },
        };
        Ok((user.uid != geteuid().as_raw()).then_some(user))
    }

    /// Makes the calling thread one of this user, with its groups, as initgroups(3) does.
    ///
    /// # Errors
    /// This thread may not.
    pub(crate) fn assume(&self) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let groups = groups(&fs::read_to_string("/etc/group").unwrap_or_default(), self);
        let groups: Vec<_> = groups.into_iter().map(Gid::from_raw).collect();
        // The groups first: they need the privilege that goes with the user.
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, gid)?;
        Ok(set_thread_res_uid(uid, uid, uid)?)
    }

    /// Which of these files it has no right to read. None where this process cannot find out, by becoming this user for a
    /// moment.
    pub(crate) fn cannot_read(&self, files: &[PathBuf]) -> Vec<PathBuf> {
        let is_refused = |file: &&PathBuf| {
            // A pipe would be waited for.
            let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file);
            opened.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        };
        let look = || self.assume().map(|()| files.iter().filter(is_refused).cloned().collect());
        // A thread of its own: each has its user.
        let refused = thread::scope(|scope| scope.spawn(look).join());
        refused.ok().and_then(Result::ok).unwrap_or_default()
    }
}

/// The groups that name a user as a member, without its own. Those of root, which would read what is root's alone, are not
/// taken along.
fn groups(file: &str, user: &User) -> Vec<u32> {
    let is_member = |members: &str| members.trim().split(',').any(|member| member == user.name);
    let of_line = |line: &str| {
        let mut fields = line.split(':').skip(2);
        let gid = fields.next()?.parse().ok()?;
        fields.next().filter(|members| is_member(members)).map(|_| gid)
    };
    let mut groups: Vec<_> = file.lines().filter_map(of_line).collect();
    groups.retain(|gid| ![0, user.gid].contains(gid));
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// A user without a name: `owner`, or one drawn, that is not used.
fn unused(owner: Option<u32>, is_used: impl Fn(u32) -> bool) -> Option<User> {
    let count = DYNAMIC.end() - DYNAMIC.start() + 1;
    let first = u32::from_le_bytes(*random::<4>()) % count;
    let drawn = (0..count).map(|step| DYNAMIC.start() + (first + step) % count);
    let mut all = owner.filter(|uid| DYNAMIC.contains(uid)).into_iter().chain(drawn);
    all.find(|uid| !is_used(*uid)).map(|uid| User { name: uid.to_string(), uid, gid: uid })
}

/// Whether somebody else has this number: by name, as a service of systemd, or as a process that is no setu.
fn is_used(passwd: &str, uid: u32) -> bool {
    let is_named = |users: &str| entries(users).any(|user| user.uid == uid);
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let is_group = groups.lines().any(|line| line.split(':').nth(2) == Some(&uid.to_string()));
    is_named(passwd) || is_group || Path::new(TAKEN).join(uid.to_string()).exists() || has_process(uid)
}

/// A setu that is to be replaced may have it.
fn has_process(uid: u32) -> bool {
    let own = Process::myself().and_then(|process| process.stat()).map(|stat| stat.comm);
    let Ok(all) = process::all_processes() else { return false };
    let is_others = |process: &Process| {
        process.uid().is_ok_and(|owner| owner == uid)
            || process.status().is_ok_and(|status| [status.ruid, status.euid, status.suid].contains(&uid))
    };
    let is_setu =
        |process: &Process| own.as_ref().is_ok_and(|own| process.stat().is_ok_and(|stat| stat.comm == *own));
    all.flatten().any(|process| is_others(&process) && !is_setu(&process))
}

fn entries(passwd: &str) -> impl Iterator<Item = User> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(User { name: name.into(), uid, gid }).filter(|user| ![user.uid, user.gid].contains(&u32::MAX))
    })
}

/// A user by its name or its number, which need not be in the file.
fn find(passwd: &str, wanted: &str) -> Option<User> {
    // The last number is no user's: to the kernel it means that nothing is to change (setresuid(2)).
    let number = wanted.parse().ok().filter(|uid| *uid != u32::MAX);
    entries(passwd)
        .find(|user| user.name == wanted || Some(user.uid) == number)
        .or_else(|| number.map(|uid| User { name: wanted.into(), uid, gid: uid }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n# no entry\nsetu:x:998:997::/:/none\nbad:x:x:1\n";
        let user = |name: &str, uid, gid| Some(User { name: name.into(), uid, gid });
        let setu = user("setu", 998, 997);
        assert_eq!(find(passwd, "setu"), setu);
        assert_eq!(find(passwd, "998"), setu);
        assert_eq!(find(passwd, "7"), user("7", 7, 7));
        assert_eq!(find(passwd, "bad"), None);
        assert_eq!(find("", "setu"), None);
        assert_eq!(find("", "4294967295"), None);
    }

    #[test]
    fn groups_are_those_that_name_the_user_but_roots() {
        let file = "root:x:0:setu\nsetu:x:997:\ncerts:x:50:a,setu\nx:x:51:setux,asetu\nssl:x:49:setu,b\n\
                    own:x:997:setu\n# no group\nbad:x:y:setu\nshort:x:52\nagain:x:50:setu\n";
        let user = |name: &str| User { name: name.into(), uid: 998, gid: 997 };
        assert_eq!(groups(file, &user("setu")), [49, 50]);
        assert_eq!(groups(file, &user("998")), [0; 0]);
        assert_eq!(groups(file, &user("")), [0; 0]);
    }

    #[test]
    fn an_unused_number_is_drawn_and_kept() {
        let uid = |owner, is_used: &dyn Fn(u32) -> bool| unused(owner, is_used).map(|user| user.uid);
        assert!(DYNAMIC.contains(&uid(None, &|_| false).unwrap()));
        assert_eq!(uid(Some(61_500), &|_| false), Some(61_500));
        // nobody's, an earlier version's.
        assert!(DYNAMIC.contains(&uid(Some(65_534), &|_| false).unwrap()));
        assert_ne!(uid(Some(61_500), &|uid| uid == 61_500), Some(61_500));
        assert_eq!(uid(None, &|uid| uid != 65_519), Some(65_519));
        assert_eq!(uid(Some(61_500), &|_| true), None);
        assert!(is_used("other:x:61500:1::/:/none\n", 61_500));
        assert!(!is_used("", 61_234));
        assert!(is_used("", 0), "its processes run");
    }

    #[test]
    fn an_unknown_user_is_told() {
        let error = User::wanted(Some("no-such-user"), None).unwrap_err().to_string();
        assert!(error.contains("useradd --system no-such-user"), "{error}");
    }
}

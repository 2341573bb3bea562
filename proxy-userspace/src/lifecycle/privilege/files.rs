//! Which files setu may still touch (Landlock, Linux 5.13): all of them are listed here.
//!
//! Rules are for folders rather than files where a file may be replaced by another of its name: a rule holds on to the
//! file that it was made for, not to the name.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access as _, AccessFs, LandlockStatus, RestrictionStatus, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

use crate::sys::sandbox;

/// What is denied unless a rule allows it, as far as the kernel knows of it. Later versions are about the sockets of
/// services such as systemd's, which setu does talk to.
const HANDLED: ABI = ABI::V6;

/// Read besides what the configuration names: resolvers and hosts, which DHCP clients replace in place; where services keep
/// what these and certificates are links to, which may come and move at any time; what this process and the machine say of
/// themselves, and how much memory their control groups have, which a reload asks anew; /dev/null is opened to have a
/// descriptor in reserve; in a static binary the random numbers of DNS queries come from files (getrandom finds its
/// function by dlsym(3), which is not there). Whose files these are is up to the user as before.
const READABLE: [&str; 10] = [
    "/etc",
    "/run",
    "/var/lib",
    "/dev/null",
    "/dev/random",
    "/dev/urandom",
    "/proc/self",
    "/proc/meminfo",
    "/proc/stat",
    "/sys/fs/cgroup",
];
/// Usually a link to where a service keeps it.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What kernels have learnt to deny since they have Landlock, by the version of it that is the first (Linux,
/// Documentation/userspace-api/landlock.rst): Linux 5.19, 6.2, 6.10 and 6.12.
const LEARNT: [(ABI, &str); 4] = [
    (ABI::V2, "moving files to other folders"),
    (ABI::V3, "truncating files"),
    (ABI::V5, "commands to devices"),
    (ABI::V6, "signals to others"),
];

/// How much of what is to be denied this kernel denies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Coverage(ABI);

impl fmt::Display for Coverage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missing: Vec<_> =
            LEARNT.iter().filter(|(first, _)| *first > self.0).map(|(_, what)| *what).collect();
        match &missing[..] {
            [] => formatter.write_str("all"),
            missing => {
                write!(formatter, "in part (its version {}): not {}", self.0 as u32, missing.join(", "))
            }
        }
    }
}

impl Coverage {
    fn of(status: &RestrictionStatus) -> Result<Self, String> {
        match status {
            RestrictionStatus { ruleset: RulesetStatus::NotEnforced, .. } => {
                Err("the kernel does not have it, or it is switched off".into())
            }
            RestrictionStatus { landlock: LandlockStatus::Available { effective_abi, .. }, .. } => {
                Ok(Self(*effective_abi))
            }
            _ => Err("the kernel does not say what of it it has".into()),
        }
    }
}

/// Allows reading beside `readable`, writing in `state_dir`, and nothing else.
///
/// # Errors
/// The kernel does not have it.
pub(super) fn restrict(readable: &[PathBuf], state_dir: &Path) -> Result<Coverage, String> {
    try_restrict(readable, state_dir)
        .map_err(|error| error.to_string())
        .and_then(|status| Coverage::of(&status))
}

fn try_restrict(readable: &[PathBuf], state_dir: &Path) -> Result<RestrictionStatus, RulesetError> {
    let named = readable.iter().map(PathBuf::as_path).chain([Path::new(RESOLV_CONF)]);
    let folders: Vec<_> = named.flat_map(folders).chain(READABLE.map(PathBuf::from)).collect();
    let allowed =
        folders.iter().map(PathBuf::as_path).chain([state_dir]).filter_map(sandbox::place).collect();
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeSock
        | AccessFs::RemoveFile;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(HANDLED))?
        .scope(Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules(folders, read))?
        .add_rules(path_beneath_rules([state_dir], write))?
        .restrict_self()?;
    if status.ruleset != RulesetStatus::NotEnforced {
        sandbox::confined_to(allowed);
    }
    Ok(status)
}

/// Allows the keeper of the wire to put pins into their folder and to take them away, and nothing else.
///
/// # Errors
/// The kernel does not have it.
pub(super) fn restrict_keeper(pins: Option<&Path>) -> Result<Coverage, String> {
    let change = AccessFs::ReadDir
        | AccessFs::ReadFile
        | AccessFs::WriteFile
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(HANDLED))
        .and_then(|ruleset| ruleset.create())
        .and_then(|ruleset| ruleset.add_rules(path_beneath_rules(pins.and_then(Path::parent), change)))
        .and_then(|ruleset| ruleset.restrict_self());
    status.map_err(|error| error.to_string()).and_then(|status| Coverage::of(&status))
}

/// The folders of a file, and of what it is a link to: certbot and Kubernetes link. And the folders that these are in,
/// unless that is all there is: a folder may be a link that is pointed elsewhere, or be replaced by another.
fn folders(file: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let folder = |file: &Path| match file.parent() {
        Some(folder) if folder == Path::new("") => Some(PathBuf::from(".")),
        folder => folder.map(PathBuf::from),
    };
    let above = |folder: &PathBuf| folder.canonicalize().ok()?.parent().map(PathBuf::from);
    let linked = |folder: &PathBuf| {
        // Where the link is, not where it leads.
        let place = std::path::absolute(folder).ok()?;
        place.parent().map(PathBuf::from)
    };
    let target = file.canonicalize().ok();
    let named: Vec<_> = folder(file).into_iter().chain(target.and_then(|target| folder(&target))).collect();
    let around: Vec<_> = named.iter().flat_map(|folder| [above(folder), linked(folder)]).flatten().collect();
    named.into_iter().chain(around.into_iter().filter(|folder| folder.parent().is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_does_not_deny_is_named() {
        assert_eq!(Coverage(ABI::V6).to_string(), "all");
        assert_eq!(
            Coverage(ABI::V4).to_string(),
            "in part (its version 4): not commands to devices, signals to others"
        );
        assert!(
            Coverage(ABI::V1).to_string().contains("not moving files to other folders, truncating files, ")
        );
    }
}

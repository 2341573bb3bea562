//! Gives up every privilege once ports are bound and the program is loaded.
//!
//! setu reads what strangers send. Whoever finds a hole in it should find himself in a process that can do nothing but
//! what a proxy does: no capability, no user's rights, no new program, and no file but its own.
//!
//! All of it holds for the calling thread and the threads that it starts: [`drop_all`] belongs before the first one.
//! What setu can then no longer do is deliberate: a reload binds no port below 1024, and reads only what its user may.

mod error;
mod files;
mod filter;
#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    process::{DumpableBehavior, set_dumpable_behavior},
    thread::{
        CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
        set_capabilities, set_no_new_privs,
    },
};
use tracing::{info, warn};

use crate::{
    config::Config,
    operator::check,
    sys::{
        state_dir::{self, StateDir},
        user::User,
    },
};
pub use error::PrivilegeError;

/// How long threads of the self-test may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whom setu becomes.
///
/// # Errors
/// There is no such user, or the folder is not one to give away.
pub(crate) fn user(config: &Config) -> Result<Option<User>, PrivilegeError> {
    let path = &config.tls.state_dir;
    let user = User::wanted(config.user.as_deref(), state_dir::owner(path))?;
    if let Some(user) = &user {
        // What cannot be looked at cannot be given either, which is told next.
        if let Ok(Some(why)) = state_dir::why_not_given(path, user) {
            return Err(PrivilegeError::Shared { path: path.display().to_string(), why });
        }
    }
    Ok(user)
}

/// Refuses a state directory that setu would not start with.
///
/// # Errors
/// As at the start.
pub fn refuse_shared(config: &Config) -> Result<(), PrivilegeError> {
    user(config).map(drop)
}

/// Gives the state directory to the user that setu becomes, before anything of its own is read or written there.
pub(crate) fn give_state(config: &Config, user: Option<&User>) {
    let path = &config.tls.state_dir;
    let given = user.map_or(Ok(()), |user| StateDir::open(path)?.give(user));
    // In a container root may not even look into what is its user's, and has written nothing there.
    let has_it = user.is_some_and(|user| state_dir::owner(path) == Some(user.uid));
    if let Err(error) = given.or_else(|error| if has_it { Ok(()) } else { Err(error) }) {
        warn!(state_dir = %path.display(), %error, "setu's user will not be able to write there");
    }
}

/// Drops all that setu has no use for once it serves. `file` is the configuration's.
///
/// # Errors
/// What cannot be dropped. What an old kernel does not have is said in a warning, and done without.
pub(crate) fn drop_all(
    config: &Config,
    file: Option<&Path>,
    user: Option<&User>,
) -> Result<(), PrivilegeError> {
    alone()?;
    // The status page asks for both. They come from the auxiliary vector, which is read once, when it is first asked for;
    // after this it could not be, and the library takes that for impossible.
    let _ = (procfs::page_size(), procfs::ticks_per_second());
    restrict(config, file, user)
}

/// Drops all but the right to change the state of sockets, for the keeper of the wire, before it has threads; of files it may touch
/// those in the folder of its pins.
///
/// # Errors
/// What cannot be dropped.
pub(crate) fn keep_one(pins: Option<&Path>) -> Result<(), PrivilegeError> {
    bound_capabilities();
    let one = CapabilitySet::NET_ADMIN;
    let _ = clear_ambient_capability_set();
    set_capabilities(
        None,
        CapabilitySets { effective: one, permitted: one, inheritable: CapabilitySet::empty() },
    )
    .and_then(|()| set_no_new_privs(true))
    .map_err(|error| PrivilegeError::Capabilities(error.into()))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| PrivilegeError::Dumpable(error.into()))?;
    let landlock = files::restrict_keeper(pins);
    let seccomp = filter::apply_to_keeper();
    let landlock = protection("the keeper", landlock, &seccomp);
    info!(%landlock, seccomp = seccomp.is_ok(), "the keeper has CAP_NET_ADMIN alone");
    Ok(())
}

/// Tells of what does not protect, and returns how far Landlock does.
fn protection(whom: &str, landlock: Result<files::Coverage, String>, seccomp: &Result<(), String>) -> String {
    let tell = |name, reason: &str| warn!(reason, "{name} does not protect {whom}; newer kernels have it");
    if let Err(reason) = seccomp {
        tell("seccomp", reason);
    }
    match landlock {
        Ok(coverage) => coverage.to_string(),
        Err(reason) => {
            tell("Landlock", &reason);
            "none".into()
        }
    }
}

/// Waits until this is the only thread.
fn alone() -> Result<(), PrivilegeError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Without /proc there is nothing to go by.
        match fs::read_dir("/proc/self/task").map_or(1, Iterator::count) {
            0 | 1 => return Ok(()),
            threads if Instant::now() >= deadline => return Err(PrivilegeError::Threads(threads)),
            _ => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// As [`drop_all`], for the calling thread.
fn restrict(config: &Config, file: Option<&Path>, user: Option<&User>) -> Result<(), PrivilegeError> {
    let readable = check::named(config, file);
    // Needs CAP_SETPCAP, which goes with the user.
    bound_capabilities();
    let name = match user {
        Some(user) => assume(user, config.user.is_some())?,
        None => None,
    };
    drop_capabilities().map_err(PrivilegeError::Capabilities)?;
    // Clients' addresses, and keys, are in no core dump, and no other process of this user may look.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| PrivilegeError::Dumpable(error.into()))?;
    let landlock = files::restrict(&readable, &config.tls.state_dir);
    let seccomp = filter::apply();
    let landlock = protection("setu", landlock, &seccomp);
    for path in &readable {
        if let Err(error) = fs::metadata(path).and_then(|_| fs::File::open(path)) {
            warn!(
                file = %path.display(), %error,
                "setu's user cannot read it any more: a reload will fail; let the user of security.user read it"
            );
        }
    }
    let user = name.unwrap_or("unchanged");
    info!(user, %landlock, seccomp = seccomp.is_ok(), "privileges dropped");
    Ok(())
}

/// Becomes a user, and returns its name. Without `must` it may also not be allowed, as in a container that lacks CAP_SETUID
/// or has one user only: that is said in a warning.
fn assume(user: &User, must: bool) -> Result<Option<&str>, PrivilegeError> {
    match user.assume() {
        Ok(()) => Ok(Some(&user.name)),
        Err(error) if must => Err(PrivilegeError::User { user: user.name.clone(), error }),
        Err(error) => {
            warn!(user = user.name, %error, "setu stays root, without its privileges; start it as another user");
            Ok(None)
        }
    }
}

/// Sees to it that not even a program with file capabilities could have any.
fn bound_capabilities() {
    for bit in 0..64 {
        // An error means that the kernel has no such capability, or that this process may not; the latter is no loss,
        // because no new program is allowed anyway.
        if remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)).is_err() {
            return;
        }
    }
}

fn drop_capabilities() -> io::Result<()> {
    // Fails on kernels before 4.3, which have none.
    let _ = clear_ambient_capability_set();
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Ok(set_no_new_privs(true)?)
}

//! Processes that are a setu which serves, as /proc shows them: whoever may open a port can say that it is one.

use std::{
    collections::BTreeSet,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use procfs::{
    net::{TcpNetEntry, TcpState},
    process::{self, FDTarget, Process},
};
use rustix::process::geteuid;
use tokio::runtime::{self, Runtime};

use super::admin::{Status, fetch, fingerprint, reachable};
use crate::config::{self, Config};

/// A process.
pub(super) struct Running {
    pub(super) pid: i32,
    pub(super) name: String,
    arguments: Vec<String>,
    /// `None` when this process may not see it.
    folder: Option<PathBuf>,
    pub(super) user: Option<u32>,
}

impl fmt::Display for Running {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "setu (pid {}, `{}`)", self.pid, self.arguments.join(" "))
    }
}

impl Running {
    /// `None` when there is none, or /proc does not show it (`hidepid`, in a unit `ProtectProc=`).
    pub(super) fn look(pid: i32) -> Option<Self> {
        Self::of(&Process::new(pid).ok()?)
    }

    /// Those that are a setu which serves with this file, or without any.
    pub(super) fn with(file: Option<&Path>) -> Vec<Self> {
        let all = process::all_processes().into_iter().flatten().flatten();
        let all = all.filter_map(|process| Self::of(&process));
        all.filter(|process| process.is_setu() && process.has(file)).collect()
    }

    fn of(process: &Process) -> Option<Self> {
        Some(Self {
            pid: process.pid,
            name: process.stat().ok()?.comm,
            arguments: process.cmdline().unwrap_or_default(),
            folder: process.cwd().ok(),
            user: process.status().ok().map(|status| status.euid),
        })
    }

    /// Whether it is a setu that serves.
    pub(super) fn is_setu(&self) -> bool {
        let own = Process::myself().and_then(|process| process.stat());
        own.is_ok_and(|own| own.comm == self.name) && self.arguments.iter().any(|argument| argument == "run")
    }

    /// Whether it serves with this file, or without any.
    pub(super) fn has(&self, file: Option<&Path>) -> bool {
        let mut after = self.arguments.iter().skip_while(|argument| !argument.starts_with("--config"));
        let theirs = after.next().and_then(|argument| match argument.split_once('=') {
            Some((_, file)) => Some(PathBuf::from(file)),
            None => after.next().map(PathBuf::from),
        });
        let theirs = theirs.map(|theirs| self.folder.clone().unwrap_or_default().join(theirs));
        let theirs = theirs.or_else(|| config::default_file().map(PathBuf::from));
        let real = |file: &Path| file.canonicalize().ok();
        match (theirs, file) {
            (None, None) => true,
            (Some(theirs), Some(file)) => real(&theirs).is_some_and(|theirs| Some(theirs) == real(file)),
            _ => false,
        }
    }
}

/// Where a process listens, if this one may see that.
pub(super) fn listens(pid: i32) -> Option<BTreeSet<SocketAddr>> {
    let descriptors = Process::new(pid).ok()?.fd().ok()?;
    let inodes = descriptors.flatten().filter_map(|descriptor| match descriptor.target {
        FDTarget::Socket(inode) => Some(inode),
        _ => None,
    });
    let inodes: BTreeSet<_> = inodes.collect();
    Some(listening(|entry| inodes.contains(&entry.inode)))
}

fn listening(is_wanted: impl Fn(&TcpNetEntry) -> bool) -> BTreeSet<SocketAddr> {
    let entries = procfs::net::tcp().into_iter().chain(procfs::net::tcp6()).flatten();
    let wanted = entries.filter(|entry| entry.state == TcpState::Listen && is_wanted(entry));
    wanted.map(|entry| entry.local_address).collect()
}

/// Where a setu may have its admin endpoint that was started with another `admin.bind`: where it listens for no clients, or
/// what has its user does: in the packaged unit a process of setu's may not look at another.
pub(super) fn doors(pid: i32, config: &Config) -> impl Iterator<Item = SocketAddr> + use<> {
    let clients: BTreeSet<_> =
        config.listeners.iter().flat_map(|listener| listener.bind.iter().copied()).collect();
    let user = geteuid().as_raw();
    let all = listens(pid).unwrap_or_else(|| listening(|entry| entry.uid == user));
    let mut doors: Vec<_> = all.into_iter().filter(|address| !clients.contains(address)).collect();
    // By default it is there.
    doors.sort_by_key(|address| !address.ip().is_loopback());
    doors.into_iter()
}

/// The setu that runs with this configuration and listens at one of its addresses at least, and where it listens.
pub(super) fn serving(config: &Config, file: Option<&Path>) -> Option<(Running, BTreeSet<SocketAddr>)> {
    let clients = config.listeners.iter().flat_map(|listener| &listener.bind);
    let wanted: Vec<_> = clients.chain(&config.admin).collect();
    let with_listens = |running: Running| listens(running.pid).map(|listens| (running, listens));
    let all = Running::with(file).into_iter().filter_map(with_listens);
    all.into_iter().find(|(_, listens)| wanted.iter().any(|address| listens.contains(address)))
}

/// What the setu says whose admin endpoint is at an address.
pub(super) fn ask(at: SocketAddr, runtime: &Runtime) -> Option<Status> {
    runtime.block_on(fetch(&reachable(at).to_string())).ok()
}

/// What an operator is told whose command has another configuration than the setu that it looks at.
pub(super) fn difference(config: &Config, status: &Status) -> Option<String> {
    let this = fingerprint(config);
    (this != status.configuration).then(|| {
        let id = status.process.id.and_then(|id| id.try_into().ok());
        let running = id.and_then(Running::look).filter(Running::is_setu);
        let who = running.map_or_else(|| "the setu that runs".into(), |running| running.to_string());
        format!(
            "{who} serves with another configuration ({}) than was read here ({this}): if the file has changed, \
             `systemctl reload setu` takes up what can change while it runs; else give the options that it was started with",
            status.configuration
        )
    })
}

/// What an operator is told whose command has another configuration than the setu that runs here, if one does.
#[must_use]
pub fn difference_here(config: &Config, file: Option<&Path>) -> Option<String> {
    let at = *config.admin.first()?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build().ok()?;
    if let Some(status) = ask(at, &runtime) {
        return difference(config, &status);
    }
    let running = Running::with(file).into_iter().next()?;
    Some(format!(
        "{running} does not answer at {at}, where this configuration has its admin endpoint: give the options that it was \
         started with"
    ))
}

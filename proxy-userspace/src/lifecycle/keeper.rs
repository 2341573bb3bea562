//! The keeper of the wire: made before everything else, so that it has nothing of what setu opens later.
//!
//! The process that will be the keeper loads the program and opens what it needs, says whether that went well, and then
//! gives up every privilege but the one that TCP_REPAIR asks for.

use std::{
    io, mem,
    num::NonZero,
    os::fd::{AsFd as _, OwnedFd},
    process,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    thread::{CapabilitySet, capabilities, set_name},
};
use tracing::{info, warn};

use super::privilege;
use crate::{
    config::{Config, PathChoice},
    relay::wire::{self, Counts, Farewell, Keeper, Network, Pins, Probed, Program, ToKeeper},
    sys::{self, Forked, seqpacket},
};

/// How long the keeper may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest reason for which it cannot, bytes.
const REASON: usize = 2048;
/// Said once the keeper runs, with the folder of its pins behind it; anything else is a reason.
const STARTED: &[u8] = b"+";

/// The keeper, as setu has it.
#[derive(Debug)]
pub(super) struct Kept {
    /// A worker's end of the protocol, for each.
    workers: Vec<OwnedFd>,
    /// What became of flows.
    pub(super) counts: Arc<Counts>,
    /// Where it is told to end; closed when it has.
    control: OwnedFd,
    /// The folder where flows on the wire are pinned, if they are.
    pins: Option<String>,
}

/// Makes a keeper of so much room for so many workers, where the configuration asks for the wire, or leaves the choice to setu and nothing
/// is in the way.
///
/// # Errors
/// The wire was asked for by name, and is not available.
pub(super) fn start(config: &Config, room: NonZero<u32>, workers: usize) -> anyhow::Result<Option<Kept>> {
    let is_free = match config.path {
        PathChoice::Userspace | PathChoice::Sockmap => return Ok(None),
        PathChoice::Auto if !config.wire.auto => return Ok(None),
        PathChoice::Auto => wire::is_free(config).map_err(anyhow::Error::msg),
        PathChoice::Wire => Ok(()),
    };
    let started = may_have_it()
        .and(is_free)
        .and_then(|()| self_test())
        .and_then(|()| try_to_start(config, room, workers));
    match started {
        Ok(kept) => {
            if let Ok(Some(what)) = wire::others_with_ports(config) {
                warn!("{what}");
            }
            info!("the wire is ready");
            Ok(Some(kept))
        }
        Err(reason) if config.path == PathChoice::Auto => {
            info!(reason = format!("{reason:#}"), "no connection goes on the wire");
            Ok(None)
        }
        Err(reason) => Err(reason.context(
            "relay.path = \"wire\" is not available. Give setu the privileges, or set relay.path = \"auto\"; `setu check` \
             says what this machine can do",
        )),
    }
}

/// Names what is missing, of which the kernel only says that it refuses.
fn may_have_it() -> anyhow::Result<()> {
    let has = capabilities(None)?.effective;
    let missing: Vec<_> = wire::CAPABILITIES
        .into_iter()
        .filter(|(bit, ..)| !has.contains(CapabilitySet::from_bits_retain(1 << bit)))
        .map(|(_, name, purpose)| format!("{name}, for {purpose}"))
        .collect();
    if missing.is_empty() { Ok(()) } else { bail!("this is missing: {}", missing.join("; ")) }
}

/// Tries the wire where nobody is harmed, before anybody's flow goes on it.
fn self_test() -> anyhow::Result<()> {
    let Probed { checks, skipped } = wire::probe();
    if let Some((name, error)) =
        checks.iter().find_map(|check| Some((check.name, check.result.as_ref().err()?)))
    {
        bail!("its self-test failed: {name}: {error}");
    }
    if !checks.is_empty() {
        info!(checks = checks.len(), "the wire's self-test passed");
    }
    if let Some(reason) = skipped {
        info!(reason, "the wire's self-test was skipped, or a part of it");
    }
    Ok(())
}

fn try_to_start(config: &Config, room: NonZero<u32>, workers: usize) -> anyhow::Result<Kept> {
    let pairs = (0..=workers).map(|_| seqpacket::pair()).collect::<io::Result<Vec<_>>>()?;
    let (mut ours, mut theirs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    match sys::fork().context("the keeper's process cannot be made")? {
        Forked::Child => {
            drop(ours);
            // The first is not for messages of workers.
            let control = theirs.remove(0);
            let Ok(told) = control.try_clone() else { process::exit(1) };
            let code = match keep(config, room, &told, control, theirs) {
                Ok(()) => 0,
                Err(error) => {
                    let reason = format!("{error:#}");
                    let reason = reason.as_bytes();
                    // Once it runs nobody listens any more.
                    let _ = seqpacket::send(told.as_fd(), &reason[..reason.len().min(REASON)], &[]);
                    1
                }
            };
            process::exit(code)
        }
        Forked::Parent(_) => {
            drop(theirs);
            let control = ours.remove(0);
            let mut reason = [0; REASON];
            wait(&control)?;
            let received =
                seqpacket::receive(control.as_fd(), &mut reason).context("the keeper does not answer")?;
            let said = received.context("the keeper ended as it started")?;
            let said = reason.get(..said.len).unwrap_or_default();
            let Some(pins) = said.strip_prefix(STARTED) else { bail!("{}", String::from_utf8_lossy(said)) };
            let pins = Some(String::from_utf8_lossy(pins).into_owned()).filter(|pins| !pins.is_empty());
            Ok(Kept { workers: ours, counts: Arc::default(), control, pins })
        }
    }
}

/// The keeper's whole life. `told`: the control's socket once more, for what may come after the keeper has ended.
fn keep(
    config: &Config,
    room: NonZero<u32>,
    told: &OwnedFd,
    control: OwnedFd,
    workers: Vec<OwnedFd>,
) -> anyhow::Result<()> {
    // Setu tells it when to end, and what it keeps may outlive setu.
    sys::ignore_signals();
    sys::close_all_but(&workers.iter().chain([&control, told]).collect::<Vec<_>>())?;
    // Commands look for setu by its name.
    let _ = set_name(c"setu-keeper");
    let instance = wire::instance(config)?;
    // An error means that nobody is warned.
    let _notice = wire::Notice::post(&instance, &config.wire.ports);
    let pins = Pins::of(&instance)?;
    let folder = pins.as_ref().map(|pins| pins.path().to_owned());
    if pins.is_none() {
        warn!("there is no BPF file system at /sys/fs/bpf: flows on the wire end with setu");
    }
    let keeper = open(config, room, pins, control, workers)
        .inspect_err(|_| folder.iter().for_each(|folder| Pins::give_up(folder)))?;
    let pins = folder.as_deref().map_or(&[][..], |folder| folder.as_os_str().as_encoded_bytes());
    seqpacket::send(told.as_fd(), &[STARTED, pins].concat(), &[])?;
    Ok(keeper.run()?)
}

/// Has all that the keeper needs, and gives up what it does not.
fn open(
    config: &Config,
    room: NonZero<u32>,
    pins: Option<Pins>,
    control: OwnedFd,
    workers: Vec<OwnedFd>,
) -> anyhow::Result<Keeper> {
    let folder = pins.as_ref().map(|pins| pins.path().to_owned());
    let program = Program::load(room.get(), config.wire.ports.clone(), pins)?;
    let (most, wanted) = (program.most(), room);
    if most != wanted.get() {
        warn!(most, %wanted, "the wire has room as it had, as long as there are connections of before");
    }
    let network =
        Network::open().context("the network cannot be watched; CAP_NET_RAW and CAP_NET_ADMIN are needed")?;
    privilege::keep_one(folder.as_deref())?;
    Ok(Keeper::new(program, network, control, workers)?)
}

fn wait(socket: &OwnedFd) -> io::Result<()> {
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    match poll(&mut fds, Some(&timeout))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

impl Kept {
    /// The worker's ends, which are taken out.
    pub(super) fn workers(&mut self) -> Vec<(OwnedFd, Arc<Counts>)> {
        let counts = &self.counts;
        mem::take(&mut self.workers).into_iter().map(|socket| (socket, counts.clone())).collect()
    }

    /// The folder where flows on the wire are pinned; `None` where they end with their keeper.
    pub(super) fn pins(&self) -> Option<&str> {
        self.pins.as_deref()
    }

    /// Whether they are pinned there.
    pub(super) fn is_at(&self, pins: &str) -> bool {
        self.pins() == Some(pins)
    }

    /// Ends every flow on the wire, and takes all of it out of the kernel.
    pub(super) fn stop(self) {
        if self.counts.has_no_keeper() {
            let connections = self.counts.flows();
            warn!(connections, "without a keeper those on the wire go on; `setu wire clear` ends them");
            return;
        }
        self.part(Farewell::Stop, ToKeeper::Stop);
    }

    /// Leaves every flow to the keeper of a successor.
    pub(super) fn hand_on(self) {
        self.part(Farewell::Yield, ToKeeper::Yield);
    }

    fn part(self, farewell: Farewell, message: ToKeeper) {
        self.counts.part(farewell);
        // An error means that it is gone, by a defect or a signal.
        let _ = seqpacket::send(self.control.as_fd(), message.encode().as_ref(), &[]);
        if let Err(error) = wait(&self.control) {
            warn!(%error, "the keeper of the wire does not end");
        }
    }
}

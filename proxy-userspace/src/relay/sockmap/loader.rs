//! Loads the committed eBPF object and owns what lives as long as it: program, maps, shared memory.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, RawFd},
    sync::atomic::Ordering,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{HashMap, Map, MapData, MapError, RingBuf, SockHash},
    programs::{ProgramError, SkSkb, SocketFilter},
};
use aya_log::EbpfLogger;
use proxy_common::{
    direction::{Budget, Direction, Notice},
    names,
};
use socket2::SockRef;
use thiserror::Error;

use super::{
    btf::{self, Btf, BtfError},
    limits::Limits,
};
use crate::{relay::refusal::refusal, sys::Shared};

/// The program that moves bytes, as built by `cargo xtask ebpf`.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../proxy-ebpf/object/setu.bpf.o"));

/// Why the kernel path cannot be had.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The kernel publishes no types.
    #[error("/sys/kernel/btf/vmlinux: {0}; the kernel must be built with CONFIG_DEBUG_INFO_BTF")]
    NoBtf(#[source] io::Error),
    /// The kernel's sockets look otherwise than expected.
    #[error("/sys/kernel/btf/vmlinux: {0}")]
    Btf(String),
    /// The object was refused.
    #[error("the kernel refused setu's maps: {0}; CAP_BPF and CAP_NET_ADMIN are needed")]
    Object(#[from] EbpfError),
    /// The program was refused.
    #[error("{}", refusal("setu's program", .0))]
    Program(#[from] ProgramError),
    /// A map is not what it should be.
    #[error("map: {0}")]
    Map(#[from] MapError),
    /// The object lacks a part; a defect of the build.
    #[error("the eBPF object has no {0}")]
    Missing(&'static str),
    /// The shared memory could not be mapped.
    #[error("mapping of shared memory: {0}")]
    Shared(#[source] io::Error),
}

/// Why the kernel path did not start.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    /// The kernel refused a part.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Without privileges maps cannot be changed.
    #[error(
        "this kernel lets only the privileged use eBPF maps, which setu is no longer: {0}; take Linux 5.19 or newer, or \
         sysctl kernel.unprivileged_bpf_disabled=0"
    )]
    Access(#[source] MapError),
    /// Out of descriptors or threads.
    #[error("the controller could not start: {0}")]
    Io(#[from] io::Error),
}

impl From<BtfError> for LoadError {
    fn from(error: BtfError) -> Self {
        Self::Btf(error.to_string())
    }
}

/// The loaded program with its maps. Dropping it takes all of it out of the kernel.
pub(super) struct Kernel {
    pub(super) sockets: SockHash<MapData, u64>,
    pub(super) sources: HashMap<MapData, u64, u32>,
    pub(super) directions: Shared<Direction>,
    pub(super) budget: Shared<Budget>,
    events: RingBuf<MapData>,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    /// Keeps the programs loaded.
    object: Ebpf,
}

impl Kernel {
    /// Loads the program for these limits.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub(super) fn load(limits: &Limits) -> Result<Self, LoadError> {
        let Limits { flows, budget, most, log_transitions, .. } = *limits;
        let (sndbuf, acked, copied, sequence) = {
            let bytes = std::fs::read(btf::VMLINUX).map_err(LoadError::NoBtf)?;
            let btf = Btf::parse(&bytes)?;
            let sequence = btf.offset("sk_buff", "cb")? + btf.offset("tcp_skb_cb", "seq")?;
            let tcp = |member| btf.offset("tcp_sock", member);
            (btf.offset("sock", "sk_sndbuf")?, tcp("bytes_acked")?, tcp("copied_seq")?, sequence)
        };
        let directions = flows * 2;
        let level = if log_transitions { aya_log::Level::Info as u8 } else { 0 };
        let mut object = EbpfLoader::new()
            .override_global(names::SNDBUF_OFFSET, &sndbuf, true)
            .override_global(names::ACKED_OFFSET, &acked, true)
            .override_global(names::COPIED_OFFSET, &copied, true)
            .override_global(names::SEQUENCE_OFFSET, &sequence, true)
            .override_global(aya_log::LEVEL, &level, false)
            .map_max_entries(names::SOCKETS, directions)
            .map_max_entries(names::SOURCES, directions)
            .map_max_entries(names::DIRECTIONS, directions)
            .load(OBJECT)?;

        // The program refers to the maps by descriptor: it must be loaded before any of them is closed.
        skb_program(&mut object)?.load()?;
        let filter = object.program_mut(names::DEAFEN).ok_or(LoadError::Missing(names::DEAFEN))?;
        <&mut SocketFilter>::try_from(filter)?.load()?;
        let mut take = |name| object.take_map(name).ok_or(LoadError::Missing(name));
        let sockets = SockHash::<_, u64>::try_from(take(names::SOCKETS)?)?;
        let sources = HashMap::try_from(take(names::SOURCES)?)?;
        let directions = map_shared(take(names::DIRECTIONS)?, names::DIRECTIONS, directions as usize)?;
        let budget_map = map_shared::<Budget>(take(names::BUDGET)?, names::BUDGET, 1)?;
        budget_map.budget().total().store(budget, Ordering::Relaxed);
        budget_map.budget().direction().store(most, Ordering::Relaxed);
        let events = RingBuf::try_from(take(names::EVENTS)?)?;
        let logger = if log_transitions { EbpfLogger::init(&mut object).ok() } else { None };

        let program = skb_program(&mut object)?;
        program.attach(sockets.fd())?;
        Ok(Self { sockets, sources, directions, budget: budget_map, events, logger, object })
    }

    /// Drops the bytes that arrive on a socket from now on, until [`Self::let_hear`].
    ///
    /// # Errors
    /// The kernel's: out of memory for options, say.
    pub(super) fn deafen(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let filter = self.object.program(names::DEAFEN).and_then(|program| program.try_into().ok());
        let filter: &SocketFilter = filter.ok_or(io::ErrorKind::NotFound)?;
        filter.attach(socket).map_err(io::Error::other)
    }

    /// Undoes [`Self::deafen`].
    ///
    /// # Errors
    /// The socket's.
    pub(super) fn let_hear(socket: BorrowedFd<'_>) -> io::Result<()> {
        SockRef::from(&socket).detach_filter()
    }

    /// The descriptor that is readable when there is something to see in a direction.
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// The descriptor that is readable when the program logged something.
    pub(super) fn log(&self) -> Option<BorrowedFd<'_>> {
        self.logger.as_ref().map(AsFd::as_fd)
    }

    /// Writes out what the program logged.
    pub(super) fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// The next direction in which there is something to see.
    pub(super) fn next_notice(&mut self) -> Option<u32> {
        let item = self.events.next()?;
        let bytes: [u8; 4] = item.get(..4)?.try_into().ok()?;
        const { assert!(std::mem::offset_of!(Notice, direction) == 0) };
        Some(u32::from_ne_bytes(bytes))
    }
}

fn skb_program(object: &mut Ebpf) -> Result<&mut SkSkb, LoadError> {
    let program = object.program_mut(names::FORWARD).ok_or(LoadError::Missing(names::FORWARD))?;
    Ok(program.try_into()?)
}

/// Maps an array map whose type aya would want to copy.
fn map_shared<T>(map: Map, name: &'static str, len: usize) -> Result<Shared<T>, LoadError> {
    let Map::Array(data) = map else {
        return Err(LoadError::Missing(name));
    };
    Shared::map(data.fd().as_fd(), len).map_err(LoadError::Shared)
}

/// A descriptor for aya's socket maps, which take nothing borrowed.
pub(super) struct Raw<'a>(pub(super) BorrowedFd<'a>);

impl std::os::fd::AsRawFd for Raw<'_> {
    fn as_raw_fd(&self) -> RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.0)
    }
}

//! What the kernel path did with flows: which it did not take, and which changed between paths.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why the kernel did not take a flow, which userspace carries then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// As many flows as the maps hold are in the kernel.
    MapFull,
    /// A side has sent its FIN already.
    Finished,
    /// A leg is gone.
    SocketGone,
    /// Bytes came too fast to tell how far a leg is.
    Busy,
    /// Not a plain established TCP socket: one of MPTCP, say.
    NotEstablished,
    /// A leg has an upper layer protocol, such as kTLS.
    UpperLayerProtocol,
    /// Something else uses a leg.
    SocketInUse,
    /// Out of kernel memory.
    OutOfMemory,
    /// Another error of the map.
    MapError,
    /// The thread that owns the kernel path is gone.
    Ended,
}

impl Refusal {
    /// Each, in the order of declaration.
    pub const ALL: [Self; 10] = [
        Self::MapFull,
        Self::Finished,
        Self::SocketGone,
        Self::Busy,
        Self::NotEstablished,
        Self::UpperLayerProtocol,
        Self::SocketInUse,
        Self::OutOfMemory,
        Self::MapError,
        Self::Ended,
    ];

    /// Its name in logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MapFull => "map_full",
            Self::Finished => "finished",
            Self::SocketGone => "socket_gone",
            Self::Busy => "busy",
            Self::NotEstablished => "not_established",
            Self::UpperLayerProtocol => "upper_layer_protocol",
            Self::SocketInUse => "socket_in_use",
            Self::OutOfMemory => "out_of_memory",
            Self::MapError => "map_error",
            Self::Ended => "ended",
        }
    }

    /// Names an error of insertion (`sock_map_update_elem_sys`, net/core/sock_map.c).
    pub(super) fn of(error: &aya::maps::MapError) -> Self {
        let aya::maps::MapError::SyscallError(error) = error else {
            return Self::MapError;
        };
        match error.io_error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Self::NotEstablished,
            Some(libc::EINVAL) => Self::UpperLayerProtocol,
            Some(libc::EBUSY) => Self::SocketInUse,
            Some(libc::E2BIG) => Self::MapFull,
            Some(libc::ENOMEM) => Self::OutOfMemory,
            _ => Self::MapError,
        }
    }
}

/// Counts since start, and what is in the kernel now.
#[derive(Debug)]
pub(crate) struct Counts {
    refused: [AtomicU64; Refusal::ALL.len()],
    congested: AtomicU64,
    streams: AtomicU64,
    resumed: AtomicU64,
    flows: AtomicU64,
    reserved: AtomicU64,
}

impl Default for Counts {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            refused: Refusal::ALL.map(|_| zero()),
            congested: zero(),
            streams: zero(),
            resumed: zero(),
            flows: zero(),
            reserved: zero(),
        }
    }
}

impl Counts {
    pub(super) fn refuse(&self, refusal: Refusal) {
        self.refused[refusal as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn congest(&self) {
        self.congested.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn stream(&self) {
        self.streams.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn resume(&self) {
        self.resumed.fetch_add(1, Ordering::Relaxed);
    }

    /// What the kernel has now: flows, and bytes that these may have on their way.
    pub(super) fn hold(&self, flows: u64, reserved: u64) {
        self.flows.store(flows, Ordering::Relaxed);
        self.reserved.store(reserved, Ordering::Relaxed);
    }

    /// Flows in the kernel.
    pub(crate) fn flows(&self) -> u64 {
        self.flows.load(Ordering::Relaxed)
    }

    /// Bytes that these may have on their way.
    pub(crate) fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed)
    }

    /// Flows that the kernel did not take, for this reason.
    pub(crate) fn refused(&self, refusal: Refusal) -> u64 {
        self.refused[refusal as usize].load(Ordering::Relaxed)
    }

    /// How often a flow left the kernel because a leg could not keep up.
    pub(crate) fn congested(&self) -> u64 {
        self.congested.load(Ordering::Relaxed)
    }

    /// How often a flow left the kernel because it moved more than messages.
    pub(crate) fn streams(&self) -> u64 {
        self.streams.load(Ordering::Relaxed)
    }

    /// How often a flow that had left for one of these came back.
    pub(crate) fn resumed(&self) -> u64 {
        self.resumed.load(Ordering::Relaxed)
    }
}

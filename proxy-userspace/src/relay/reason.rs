//! Why a flow is not in the kernel, or not any more.

use crate::account::Side;

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
}

/// Why a flow comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// The leg has sent its FIN.
    Finished(Side),
    /// A leg's peer reads slower than the other sends.
    Congested,
    /// It moves more than messages.
    Streams,
    /// To test the way out.
    Recalled,
    /// The kernel did not take it.
    NotTaken(Refusal),
}

impl Why {
    /// Its name in logs.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Finished(_) => "finished",
            Self::Congested => "congested",
            Self::Streams => "streams",
            Self::Recalled => "recalled",
            Self::NotTaken(refusal) => refusal.name(),
        }
    }
}

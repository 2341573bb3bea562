//! What the verdict program and the controller keep together about each direction of a flow.
//!
//! A flow in the kernel has two directions, each named by its source socket. Both sides map the same memory
//! (`BPF_F_MMAPABLE`), so that the controller reads progress without a syscall. Each field has one writer; where two
//! must write, they exchange atomically. No value is ever written as a whole while its flow is in the kernel.

use core::sync::atomic::AtomicU64;

use crate::credit::Window;

/// One direction of a flow in the kernel. Written at insertion by the controller, before the program can see it.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Direction {
    /// Flow-control state, written by the program only (it runs under the source socket's lock).
    pub window: Window,
    /// Bytes left to userspace because the destination could not take them, or because the flow leaves the kernel.
    /// Once it is not 0 all that arrives is passed: what came first must not be overtaken. Written by the program.
    pub passed: AtomicU64,
    /// Bytes that this direction holds of [`Budget::reserved`]. Exchanged by both.
    pub reserved: AtomicU64,
    /// Bytes that userspace wrote to the destination before insertion. Written by the controller.
    pub base_acked: u64,
    /// Socket cookie of the destination. Written by the controller.
    pub destination: u64,
    /// Not 0 once the flow leaves the kernel: nothing more may be redirected. Written by the controller.
    pub withdrawing: AtomicU64,
    /// Sequence number of the next byte, with [`SEQUENCE_KNOWN`] set once it is known. Written by the program.
    pub next_sequence: u64,
    /// Not 0 when the program met a segment that does not follow the one before, and could not be trimmed to do so:
    /// nothing more is forwarded, and the flow must be reset. Written by the program.
    pub broken: AtomicU64,
    /// The controller is told when so many bytes were redirected: a stream belongs elsewhere. Written by the controller.
    pub stream_at: AtomicU64,
    /// The [`Self::stream_at`] of which it was told last. Written by the program.
    pub told_at: u64,
}

/// Marks [`Direction::next_sequence`], whose lower half is the number.
pub const SEQUENCE_KNOWN: u64 = 1 << 32;

/// The bound on bytes that the kernel holds for all flows together.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Budget {
    /// Bytes that directions may have reserved in all.
    pub total: AtomicU64,
    /// Bytes reserved now: the sum of [`Direction::reserved`].
    pub reserved: AtomicU64,
    /// Bytes that one direction may have on its way, whatever its destination's send buffer takes.
    pub direction: AtomicU64,
}

/// Told to the controller when there is something to see in a direction: it passes bytes to userspace, is broken, or has
/// redirected [`Direction::stream_at`] bytes. Once for each.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Notice {
    /// Index of the direction.
    pub direction: u32,
    /// Always 0.
    pub padding: u32,
}

const _: () = assert!(size_of::<Direction>() == 112 && align_of::<Direction>() == 8);
const _: () = assert!(size_of::<Budget>() == 24);
const _: () = assert!(size_of::<Notice>() == 8);

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "aya::Pod is an unsafe trait")]

    // SAFETY: two u32 without padding between or after them, any bit pattern is valid.
    unsafe impl aya::Pod for super::Notice {}
}

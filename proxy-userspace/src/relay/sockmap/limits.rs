//! Limits of the kernel path.

use std::time::Duration;

/// Bytes that a leg of a flow in the kernel holds for its reader at most. What the kernel forwards counts as read, so
/// that the buffer would be tuned for a quick reader, up to `net.ipv4.tcp_rmem`, and be full of a slow one's bytes. At a
/// round trip of 100 ms a sender still fills 100 Mbit/s; with 416 KiB, all that the `net.core.rmem_max` of older kernels
/// lets setu have without privileges, 20 Mbit/s.
const RECEIVE_BUFFER: i32 = 2 << 20;

/// Limits of the kernel path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Flows at once.
    pub(crate) flows: u32,
    /// Bytes that all flows together may have on their way to clients and upstreams.
    pub(crate) budget: u64,
    /// Bytes that one direction may have on its way, whatever its destination's send buffer takes.
    pub(crate) most: u64,
    /// Bytes that a leg holds for its reader at most.
    pub(crate) receive_buffer: i32,
    /// Flows that turn out to stream leave.
    pub(crate) only_quiet: bool,
    /// Flows leave after up to twice this, whatever they do: only to test the way out.
    pub(crate) recall: Option<Duration>,
    /// Close a flow when nothing moved for so long.
    pub(crate) idle: Duration,
    /// Let the program report congestion.
    pub(crate) log_transitions: bool,
}

impl Limits {
    /// For flows of every kind.
    pub(crate) fn new(flows: u32, budget: u64, idle: Duration) -> Self {
        Self {
            flows,
            budget,
            most: u64::MAX,
            receive_buffer: RECEIVE_BUFFER,
            only_quiet: false,
            recall: None,
            idle,
            log_transitions: false,
        }
    }

    /// The same for flows that leave when they stream: a reader that stalls then costs a fraction of a stream's buffers.
    pub(crate) fn only_quiet(self) -> Self {
        Self { most: 128 << 10, receive_buffer: 128 << 10, only_quiet: true, ..self }
    }
}

//! The wire: a flow whose packets are translated in the kernel from one connection to the other.
//!
//! setu accepts, inspects and dials as ever. Once a flow has lasted for a while it is offered to the [`keeper`], a process of its
//! own, which lets a program at tc ingress translate its packets, and closes both of setu's sockets without a word. From
//! then on both ends talk to each other; nothing of the flow is left here but its ticket.

mod counts;
#[cfg(test)]
mod exercise;
mod handle;
mod keeper;
mod loader;
mod message;
mod network;
mod pinned;
mod probe;

pub(crate) use counts::{Counts, Farewell};
pub(crate) use handle::{Adopt, NO_KEEPER, Offer, Standing, Taken, WAITS, Wire};
pub(crate) use keeper::Keeper;
pub(crate) use loader::{Pins, Program};
pub(crate) use message::{FlowNames, Limits, ToKeeper, WireRefusal};
pub(crate) use network::Network;
pub(crate) use pinned::{Flows, Notice, Pinned, instance, is_free, others_with_ports, pinned};
pub(crate) use probe::{Probed, probe};

/// Capabilities that the wire cannot do without, by their bit (include/uapi/linux/capability.h): what for.
pub(crate) const CAPABILITIES: [(u32, &str, &str); 4] = [
    (12, "CAP_NET_ADMIN", "attaching the wire's program to devices, and taking connections over"),
    (13, "CAP_NET_RAW", "the wire's resets and what it hears of packets that are too big"),
    (38, "CAP_PERFMON", "the wire's program, which reads packets"),
    (39, "CAP_BPF", "loading the wire's program and its maps"),
];

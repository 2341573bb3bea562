//! What workers and the controller hand to each other.

use std::{os::fd::OwnedFd, time::Duration};

use tokio::sync::{mpsc::UnboundedSender, oneshot};

use crate::{account::Ticket, relay::reason::Why};

/// Both legs of a flow, nonblocking, with nothing of their streams in userspace, and no segment of which a part was read:
/// the kernel forwards segments whole.
#[derive(Debug)]
pub(crate) struct Legs {
    pub(crate) client: OwnedFd,
    pub(crate) upstream: OwnedFd,
    /// How often the kernel turned out to be no place for the flow.
    pub(crate) left: u32,
}

/// A flow that userspace must carry on.
#[derive(Debug)]
pub(crate) struct Returned {
    pub(crate) legs: Legs,
    pub(crate) ticket: Ticket,
    pub(crate) why: Why,
    /// Bytes that userspace must send before all others, by the leg that they came from.
    pub(crate) collected: [Vec<u8>; 2],
}

/// What the controller is told.
pub(super) enum Command {
    Adopt(Legs, Ticket, UnboundedSender<Returned>),
    /// Another idle timeout for flows that come from now on.
    Idle(Duration),
    /// Answer: the controller is alive.
    Ping(oneshot::Sender<()>),
    Stop,
}

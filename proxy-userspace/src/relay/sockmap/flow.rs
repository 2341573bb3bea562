//! A flow in the kernel: its state, and how it leaves.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::sync::mpsc::UnboundedSender;

use super::{
    command::Returned,
    loader::Kernel,
    teardown::{Inbound, Outbound, may_detach},
};
use crate::{
    account::{Side, Ticket},
    relay::{choice, reason::Why},
    sys::{self, DirectionRef},
};

/// How soon a flow that waits is looked at again at first.
pub(super) const POLL_MIN: Duration = Duration::from_millis(1);
/// Bytes taken out of a leaving leg after which it hears nothing until it is out.
const COLLECTED: usize = 64 * 1024;
/// Tries to read a leg's counts in one moment.
const TRIES: u32 = 16;

/// A flow in the kernel.
pub(super) struct Flow {
    pub(super) sockets: [OwnedFd; 2],
    pub(super) cookies: [u64; 2],
    /// What was at insertion, by leg.
    pub(super) bases: [Base; 2],
    pub(super) left: u32,
    /// When the flow came.
    pub(super) since: Instant,
    /// When it is recalled, if that is being tested.
    pub(super) recalled: Option<Instant>,
    pub(super) ticket: Ticket,
    pub(super) returns: UnboundedSender<Returned>,
    /// Close it when nothing moved for so long.
    pub(super) idle: Duration,
    /// When to look whether it is idle.
    pub(super) deadline: Instant,
    /// Set while the flow leaves the kernel.
    pub(super) leaving: Option<Leaving>,
    /// What was redirected as of the last sweep, by source.
    pub(super) seen: [Seen; 2],
    /// Set while the flow is polled.
    pub(super) poll: Option<Poll>,
}

/// How far a direction was.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) bytes: u64,
    /// Wrapping.
    pub(super) segments: u32,
}

impl Seen {
    pub(super) fn of(direction: DirectionRef<'_>) -> Self {
        Self { bytes: direction.redirected(), segments: direction.segments() }
    }

    /// Whether what was redirected since is a stream, not messages.
    pub(super) fn is_stream(self, now: Self) -> bool {
        let segments = now.segments.wrapping_sub(self.segments);
        choice::is_stream(now.bytes.wrapping_sub(self.bytes), segments.into())
    }
}

/// A leg at insertion: the kernel's counts go on from here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Base {
    /// Bytes received and taken out by userspace.
    pub(super) taken: u64,
    /// Bytes written.
    pub(super) written: u64,
}

impl Base {
    /// Reads a leg's counts. `None` when bytes keep arriving or being acknowledged: counts must be of one moment.
    pub(super) fn of(leg: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        for _ in 0..TRIES {
            let before = sys::tcp_info(leg)?;
            let (queued, unacknowledged) = (sys::queued(leg)?, sys::unacknowledged(leg)?);
            let after = sys::tcp_info(leg)?;
            if (before.received, before.acked) == (after.received, after.acked) {
                return Ok(Some(Self {
                    taken: after.received.saturating_sub(queued),
                    written: after.written(unacknowledged),
                }));
            }
        }
        Ok(None)
    }
}

/// A flow on its way out.
pub(super) struct Leaving {
    pub(super) why: Why,
    /// What was passed and taken out, by source.
    pub(super) collected: [Vec<u8>; 2],
    /// Which legs have left the map.
    detached: [bool; 2],
}

#[derive(Clone, Copy)]
pub(super) struct Poll {
    pub(super) at: Instant,
    pub(super) after: Duration,
}

impl Flow {
    /// Lets the flow leave, unless it does already.
    pub(super) fn begin_to_leave(&mut self, id: u32, kernel: &Kernel, why: Why) {
        if self.leaving.is_some() {
            return;
        }
        for side in SIDES {
            kernel.directions.direction(direction_index(id, side)).withdraw();
            // `TCP_INFO` takes the socket's lock: after it no run of the program is under way that did not see the
            // flag, so that what is redirected is final. An error is met again when the flow is looked at.
            let _ = sys::tcp_info(self.leg(side));
        }
        self.leaving = Some(Leaving { why, collected: Default::default(), detached: [false; 2] });
    }

    pub(super) fn leg(&self, side: Side) -> BorrowedFd<'_> {
        self.sockets[side.index()].as_fd()
    }

    pub(super) fn base(&self, side: Side) -> Base {
        self.bases[side.index()]
    }
}

/// Index of the direction from `source` of a flow.
pub(super) fn direction_index(id: u32, source: Side) -> u32 {
    id * 2 + source.index() as u32
}

pub(super) const SIDES: [Side; 2] = [Side::Client, Side::Upstream];

/// A leg that failed.
pub(super) type Broken = (Side, io::Error);

/// One leaving flow, with what is needed to act on it.
pub(super) struct Departure<'a> {
    pub(super) kernel: &'a mut Kernel,
    pub(super) scratch: &'a mut [u8],
    pub(super) id: u32,
    pub(super) flow: &'a Flow,
    pub(super) leaving: &'a mut Leaving,
}

impl Departure<'_> {
    /// Takes the next steps out of the kernel, and returns whether the flow is out.
    pub(super) fn advance(&mut self) -> Result<bool, Broken> {
        for side in SIDES {
            if self.direction(side).is_broken() {
                let text = "a segment was not the one that follows, and could not be trimmed";
                return Err((side, io::Error::other(text)));
            }
            self.bound(side)?;
        }
        for side in SIDES {
            if !self.leaving.detached[side.index()] && !self.detach(side)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn direction(&self, source: Side) -> DirectionRef<'_> {
        self.kernel.directions.direction(direction_index(self.id, source))
    }

    /// What is passed on a leg waits behind its backlog, charged to nobody, and its window stays open (`sk_psock_verdict_apply`,
    /// net/core/skmsg.c). A backlog is written at once, as far as `proxy_common::credit` knows; where it is not, for its socket
    /// got no memory, say, nothing more comes in until it is.
    fn bound(&self, side: Side) -> Result<(), Broken> {
        // It was looked at before, a millisecond ago at least.
        let is_late = self.flow.poll.is_some() || self.direction(side).passed() >= COLLECTED as u64;
        if self.leaving.detached[side.index()] || !is_late || self.outbound(side)?.is_flushed() {
            return Ok(());
        }
        self.kernel.deafen(self.flow.leg(side)).map_err(|error| (side, error))
    }

    /// Takes the leg out of the map, if it can be now.
    fn detach(&mut self, side: Side) -> Result<bool, Broken> {
        let outbound = self.outbound(side)?;
        if !outbound.is_flushed() {
            return Ok(false);
        }
        // Most of what was passed is taken out beforehand, so that the moment below is short. A sender may be as quick
        // as this, so there is an end to it.
        self.collect(side, self.direction(side).passed())?;
        // While a socket leaves the map, a segment that arrives can fall between: its callback is the program's still,
        // and the program's state is gone (`sk_psock_verdict_recv`, net/core/skmsg.c, drops it then, acknowledged). So
        // for this moment the socket is deaf.
        let failed = |error| (side, error);
        self.kernel.deafen(self.flow.leg(side)).map_err(failed)?;
        let detached = self.detach_deaf(side, &outbound);
        // The kernel's worker may be late with what was passed. What is taken out makes room for more: a sender that is
        // quick fills memory by it, unless the socket stays deaf until then.
        if !matches!(detached, Ok(false)) || self.leaving.collected[side.index()].len() < COLLECTED {
            Kernel::let_hear(self.flow.leg(side)).map_err(failed)?;
        }
        detached
    }

    fn detach_deaf(&mut self, side: Side, outbound: &Outbound) -> Result<bool, Broken> {
        self.collect(side, u64::MAX)?;
        let collected = self.leaving.collected[side.index()].len() as u64;
        let inbound = Inbound { passed: self.direction(side).passed(), collected };
        if !may_detach(&inbound, outbound) {
            return Ok(false);
        }
        // An error means that the kernel took it out already, because the socket is closed; epoll tells that.
        let _ = self.kernel.sockets.remove(&self.flow.cookies[side.index()]);
        self.leaving.detached[side.index()] = true;
        self.account(side)?;
        Ok(true)
    }

    /// Takes out what was passed, as far as it is there, until `target` bytes were taken out in all.
    fn collect(&mut self, side: Side, target: u64) -> Result<(), Broken> {
        let collected = &mut self.leaving.collected[side.index()];
        while (collected.len() as u64) < target {
            match sys::receive(self.flow.leg(side), self.scratch) {
                Ok(0) => break,
                Ok(count) => {
                    // As much as there is, not the double: a reader that stalls may keep it for long.
                    collected.reserve_exact(count);
                    collected.extend_from_slice(&self.scratch[..count]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err((side, error)),
            }
        }
        Ok(())
    }

    /// Makes sure that each byte that arrived was redirected, passed, or is in the socket's queue: a segment that had
    /// come past the filter before it was attached, and was delayed since, would be lost in silence.
    fn account(&self, side: Side) -> Result<(), Broken> {
        let leg = self.flow.leg(side);
        // In this order: what arrives between the two makes the second larger.
        let info = sys::tcp_info(leg).map_err(|error| (side, error))?;
        let queued = sys::queued(leg).map_err(|error| (side, error))?;
        let direction = self.direction(side);
        let known = self.flow.base(side).taken + direction.redirected() + direction.passed() + queued;
        if info.received > known + u64::from(info.finished) {
            let text = format!("{} bytes were lost while the flow left the kernel", info.received - known);
            return Err((side, io::Error::other(text)));
        }
        Ok(())
    }

    /// What goes out on a leg.
    fn outbound(&self, side: Side) -> Result<Outbound, Broken> {
        let leg = self.flow.leg(side);
        // In this order: see `TcpInfo::written`.
        let info = sys::tcp_info(leg).map_err(|error| (side, error))?;
        let unacknowledged = sys::unacknowledged(leg).map_err(|error| (side, error))?;
        if info.closed {
            let error = SockRef::from(&leg).take_error().ok().flatten();
            return Err((side, error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())));
        }
        let written = info.written(unacknowledged).saturating_sub(self.flow.base(side).written);
        Ok(Outbound { redirected: self.direction(side.other()).redirected(), written })
    }
}

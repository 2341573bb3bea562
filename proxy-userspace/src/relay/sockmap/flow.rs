//! A flow in the kernel: its state, and what is done for it when something happened.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::sync::mpsc::UnboundedSender;

use super::{
    Returned, Why,
    flow_control::{self, Congestion, Outcome, Relay},
    loader::Kernel,
    teardown::{self, Passage, Stage, Step},
};
use crate::{
    close_reason::{CloseReason, Side, Ticket},
    sys::{self, DirectionRef, Interest},
};

/// How soon a flow that waits is looked at again at first.
pub(super) const POLL_MIN: Duration = Duration::from_millis(1);
/// Bytes that arrive before a socket that leaves the map is told: more than a network brings in that moment.
const QUIET: i32 = 1 << 20;

/// A flow in the kernel.
pub(super) struct Flow {
    pub(super) sockets: [OwnedFd; 2],
    pub(super) cookies: [u64; 2],
    pub(super) prefix: u64,
    pub(super) ticket: Ticket,
    pub(super) returns: UnboundedSender<Returned>,
    /// When to look whether it is idle.
    pub(super) deadline: Instant,
    /// Set while the flow leaves the kernel.
    pub(super) leaving: Option<Leaving>,
    /// By source.
    pub(super) congestion: [Option<Box<Congestion>>; 2],
    pub(super) interest: [Interest; 2],
    /// Bytes redirected as of the last sweep, by source.
    pub(super) seen: [u64; 2],
    /// Set while the flow is polled.
    pub(super) poll: Option<Poll>,
}

#[derive(Clone, Copy)]
pub(super) struct Leaving {
    pub(super) first: Side,
    pub(super) stage: Stage,
    /// The other leg's peer was made to pause.
    pub(super) paused: bool,
}

#[derive(Clone, Copy)]
pub(super) struct Poll {
    pub(super) at: Instant,
    pub(super) after: Duration,
}

/// How the treatment of a flow ended.
pub(super) enum Verdict {
    Stays,
    Close(CloseReason),
    /// Reset the other leg.
    Broken(Side, io::Error),
    Return(Why),
}

impl Flow {
    pub(super) fn leg(&self, side: Side) -> BorrowedFd<'_> {
        self.sockets[side.index()].as_fd()
    }

    /// Bytes that userspace wrote to this leg before insertion.
    pub(super) fn base_written(&self, side: Side) -> u64 {
        if side == Side::Upstream { self.prefix } else { 0 }
    }

    /// Bytes that userspace read from this leg before insertion.
    fn base_received(&self, side: Side) -> u64 {
        if side == Side::Client { self.prefix } else { 0 }
    }
}

/// Index of the direction from `source` of a flow.
pub(super) fn direction_index(id: u32, source: Side) -> u32 {
    id * 2 + source.index() as u32
}

pub(super) const SIDES: [Side; 2] = [Side::Client, Side::Upstream];

fn relay_from<'a>(kernel: &'a Kernel, flow: &'a Flow, id: u32, from: Side) -> Relay<'a> {
    Relay {
        from,
        source: flow.leg(from),
        destination: flow.leg(from.other()),
        base_written: flow.base_written(from.other()),
        direction: kernel.directions.direction(direction_index(id, from)),
        budget: kernel.budget.budget(),
    }
}

/// One flow, with what is needed to act on it.
pub(super) struct Treatment<'a> {
    pub(super) kernel: &'a mut Kernel,
    pub(super) scratch: &'a mut [u8],
    pub(super) id: u32,
    pub(super) flow: &'a mut Flow,
}

impl Treatment<'_> {
    pub(super) fn run(mut self) -> Verdict {
        for side in SIDES {
            if self.direction(side).is_broken() {
                let error = io::Error::other("a segment repeated bytes and could not be trimmed");
                return Verdict::Broken(side, error);
            }
            if let Err(verdict) = self.relay(side) {
                return verdict;
            }
        }
        match self.leave() {
            Ok(verdict) => verdict,
            Err((side, error)) => Verdict::Broken(side, error),
        }
    }

    fn direction(&self, source: Side) -> DirectionRef<'_> {
        self.kernel.directions.direction(direction_index(self.id, source))
    }

    /// Relays what was passed from this side.
    fn relay(&mut self, from: Side) -> Result<(), Verdict> {
        let Some(mut congestion) = self.flow.congestion[from.index()].take() else {
            return Ok(());
        };
        let relay = relay_from(self.kernel, self.flow, self.id, from);
        match relay.run(&mut congestion, self.scratch) {
            Outcome::Level => return Ok(()),
            Outcome::Broken(side, error) => return Err(Verdict::Broken(side, error)),
            Outcome::WaitRead | Outcome::WaitWrite => {}
            // Nothing tells when these end, so look again soon.
            Outcome::WaitFlush | Outcome::Yield => {
                self.flow.poll = self.flow.poll.map(|poll| Poll { after: POLL_MIN / 2, ..poll })
            }
        }
        self.flow.congestion[from.index()] = Some(congestion);
        Ok(())
    }

    /// Takes the next steps out of the kernel, if the flow is leaving.
    fn leave(&mut self) -> Result<Verdict, (Side, io::Error)> {
        let Some(mut leaving) = self.flow.leaving.take() else {
            return Ok(Verdict::Stays);
        };
        let (first, second) = (leaving.first, leaving.first.other());
        loop {
            let forward = self.passage(first)?;
            let back = self.passage(second)?;
            match teardown::next(leaving.stage, &forward, &back) {
                Step::Wait => break,
                Step::Detach => {
                    if !self.detach(second)? {
                        break;
                    }
                    leaving.stage = Stage::Detached;
                }
                Step::Return => {
                    self.take_out(first)?;
                    if leaving.paused {
                        flow_control::resume(self.flow.leg(second));
                    }
                    return Ok(Verdict::Return(Why::Finished(first)));
                }
            }
        }
        // A sender that is always ahead of its reader would keep its direction congested, and this FIN back.
        if !leaving.paused && self.flow.congestion[second.index()].is_some() {
            flow_control::pause(self.flow.leg(second));
            leaving.paused = true;
        }
        self.flow.leaving = Some(leaving);
        Ok(Verdict::Stays)
    }

    /// Takes the leg out of the map, unless bytes of it wait in userspace.
    fn detach(&mut self, side: Side) -> Result<bool, (Side, io::Error)> {
        self.direction(side).set_withdrawing(true);
        // After this no run of the program is under way that did not see the flag.
        let _ = sys::peek(self.flow.leg(side), &mut [0]);
        let direction = self.direction(side);
        if direction.passed() != direction.relayed() {
            direction.set_withdrawing(false);
            self.flow.congestion[side.index()].get_or_insert_default();
            return Ok(false);
        }
        self.take_out(side)?;
        // While a socket leaves the map, a segment that arrives can fall between: its callback is the program's still,
        // and the program's state is gone (`sk_psock_verdict_recv`, net/core/skmsg.c, drops it then). So for this
        // moment the socket is told of nothing: what arrives stays in its queue.
        let leg = self.flow.leg(side);
        let failed = |error| (side, error);
        sys::set_receive_low_water(leg, QUIET).map_err(failed)?;
        // An error means that the kernel took it out already, because the socket is closed; epoll tells that too.
        let _ = self.kernel.sockets.remove(&self.flow.cookies[side.index()]);
        let leg = self.flow.leg(side);
        sys::set_receive_low_water(leg, 1).map_err(failed)?;
        self.account(side)?;
        Ok(true)
    }

    /// Makes sure that each byte that arrived was redirected, passed, or is in the socket's queue. A FIN that arrives
    /// in the wrong moment tells the socket in spite of [`QUIET`]; bytes before it would be lost in silence.
    fn account(&self, side: Side) -> Result<(), (Side, io::Error)> {
        let leg = self.flow.leg(side);
        let info = sys::tcp_info(leg).map_err(|error| (side, error))?;
        let queued = sys::queued(leg).map_err(|error| (side, error))?;
        let direction = self.direction(side);
        let known = self.flow.base_received(side) + direction.redirected() + direction.passed() + queued;
        if info.received > known + u64::from(info.finished) {
            let text = format!("{} bytes were lost while the flow left the kernel", info.received - known);
            return Err((side, io::Error::other(text)));
        }
        Ok(())
    }

    /// Takes out of the source's queue what was relayed from it: the queue does not outlive its place in the map.
    fn take_out(&mut self, side: Side) -> Result<(), (Side, io::Error)> {
        let Some(mut congestion) = self.flow.congestion[side.index()].take() else { return Ok(()) };
        let relay = relay_from(self.kernel, self.flow, self.id, side);
        relay.take_out(&mut congestion, self.scratch).map_err(|error| (side, error))
    }

    /// How far the direction from this side is.
    fn passage(&self, source: Side) -> Result<Passage, (Side, io::Error)> {
        let destination = source.other();
        // `TCP_INFO` waits for the segment that is being worked on, so that the program's counts, read after it,
        // include it.
        let from = sys::tcp_info(self.flow.leg(source)).map_err(|error| (source, error))?;
        let to = sys::tcp_info(self.flow.leg(destination)).map_err(|error| (destination, error))?;
        for (side, info) in [(source, &from), (destination, &to)] {
            if info.closed {
                let error = SockRef::from(&self.flow.leg(side)).take_error().ok().flatten();
                return Err((side, error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())));
            }
        }
        let direction = self.direction(source);
        let received = from.received.saturating_sub(self.flow.base_received(source));
        Ok(Passage {
            // The FIN counts as one. Of the direction that has none, this is not looked at.
            received: received.saturating_sub(1),
            redirected: direction.redirected(),
            passed: direction.passed(),
            relayed: direction.relayed(),
            written: to.written.saturating_sub(self.flow.base_written(destination)),
        })
    }
}

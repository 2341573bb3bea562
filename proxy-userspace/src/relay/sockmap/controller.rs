//! The thread that owns the kernel path's flows.
//!
//! It sleeps until a flow's FIN, a reset, or congestion wakes it, and looks over all flows about once a second. A
//! message that passes through the kernel wakes nobody.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{atomic::Ordering, mpsc},
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{error, warn};

use super::{
    Command, Legs, Limits, Returned, Why,
    flow_control::{self, Congestion, Outcome, Relay},
    loader::{Kernel, Raw},
    teardown::{self, Passage, Stage, Step},
};
use crate::{
    close_reason::{CloseReason, Path, Side, Ticket},
    sys::{self, DirectionRef, Epoll, Event, EventFd, Interest},
};

/// How soon a flow that waits is looked at again at first, and at most.
const POLL_MIN: Duration = Duration::from_millis(1);
const POLL_MAX: Duration = Duration::from_millis(50);
/// How often all flows are looked over, at most.
const SWEEP: Duration = Duration::from_secs(1);

const TOKEN_WAKE: u64 = u64::MAX;
const TOKEN_EVENTS: u64 = u64::MAX - 1;
const TOKEN_LOG: u64 = u64::MAX - 2;

/// A flow in the kernel.
struct Flow {
    sockets: [OwnedFd; 2],
    cookies: [u64; 2],
    prefix: u64,
    ticket: Ticket,
    returns: UnboundedSender<Returned>,
    /// When to look whether it is idle.
    deadline: Instant,
    /// Set while the flow leaves the kernel.
    leaving: Option<Leaving>,
    /// By source.
    congestion: [Option<Box<Congestion>>; 2],
    interest: [Interest; 2],
    /// Bytes redirected as of the last sweep, by source.
    seen: [u64; 2],
    /// Set while the flow is polled.
    poll: Option<Poll>,
}

#[derive(Clone, Copy)]
struct Leaving {
    first: Side,
    stage: Stage,
    /// The other leg's peer was made to pause.
    paused: bool,
}

#[derive(Clone, Copy)]
struct Poll {
    at: Instant,
    after: Duration,
}

/// How the treatment of a flow ended.
enum Verdict {
    Stays,
    Close(CloseReason),
    /// Reset the other leg.
    Broken(Side, io::Error),
    Return(Why),
}

impl Flow {
    fn leg(&self, side: Side) -> BorrowedFd<'_> {
        self.sockets[side.index()].as_fd()
    }

    /// Bytes that userspace wrote to this leg before insertion.
    fn base_written(&self, side: Side) -> u64 {
        if side == Side::Upstream { self.prefix } else { 0 }
    }

    /// Bytes that userspace read from this leg before insertion.
    fn base_received(&self, side: Side) -> u64 {
        if side == Side::Client { self.prefix } else { 0 }
    }
}

/// Index of the direction from `source` of a flow.
fn direction_index(id: u32, source: Side) -> u32 {
    id * 2 + source.index() as u32
}

const SIDES: [Side; 2] = [Side::Client, Side::Upstream];

/// See the module.
pub(super) struct Controller {
    kernel: Kernel,
    limits: Limits,
    epoll: Epoll,
    commands: mpsc::Receiver<Command>,
    /// By id; ids index the kernel's directions too.
    flows: Vec<Option<Flow>>,
    free: Vec<u32>,
    /// Ids of flows that are polled.
    polled: Vec<u32>,
    scratch: Box<[u8]>,
    next_sweep: Instant,
}

impl Controller {
    pub(super) fn new(
        kernel: Kernel,
        limits: Limits,
        commands: mpsc::Receiver<Command>,
        wake: &EventFd,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let read = Interest { read: true, write: false };
        epoll.add(wake.as_fd(), TOKEN_WAKE, read)?;
        epoll.add(kernel.events(), TOKEN_EVENTS, read)?;
        if let Some(log) = kernel.log() {
            epoll.add(log, TOKEN_LOG, read)?;
        }
        Ok(Self {
            kernel,
            limits,
            epoll,
            commands,
            flows: Vec::new(),
            free: Vec::new(),
            polled: Vec::new(),
            scratch: vec![0; flow_control::SCRATCH].into_boxed_slice(),
            next_sweep: Instant::now(),
        })
    }

    /// Runs until told to stop, or until every worker is gone.
    pub(super) fn run(mut self) {
        let mut events = vec![Event { events: 0, u64: 0 }; 256];
        loop {
            match self.epoll.wait(&mut events, self.timeout(Instant::now())) {
                Ok(ready) => {
                    for ready in ready {
                        match ready.token {
                            TOKEN_WAKE => {}
                            TOKEN_EVENTS => self.take_congested(),
                            TOKEN_LOG => self.kernel.flush_log(),
                            token => self.attend(token, ready.broken, ready.finished),
                        }
                    }
                }
                Err(error) => {
                    error!(%error, "the kernel path's epoll failed");
                    break;
                }
            }
            if !self.take_commands() {
                break;
            }
            self.poll();
            self.sweep();
        }
        for id in 0..self.flows.len() as u32 {
            if let Some(flow) = self.remove(id) {
                flow.ticket.close(CloseReason::Shutdown);
            }
        }
        // What was sent meanwhile is closed as well: `Handle::adopt` cannot know.
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Adopt(_, ticket, _) = command {
                ticket.close(CloseReason::Shutdown);
            }
        }
    }

    /// How long to sleep.
    fn timeout(&self, now: Instant) -> Option<Duration> {
        if self.flows.len() == self.free.len() {
            return None;
        }
        let polls = self.polled.iter().filter_map(|id| self.flow(*id)?.poll).map(|poll| poll.at);
        let next = polls.chain([self.next_sweep]).min()?;
        Some(next.saturating_duration_since(now))
    }

    fn flow(&self, id: u32) -> Option<&Flow> {
        self.flows.get(id as usize)?.as_ref()
    }

    fn flow_mut(&mut self, id: u32) -> Option<&mut Flow> {
        self.flows.get_mut(id as usize)?.as_mut()
    }

    /// Whether to go on.
    fn take_commands(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Adopt(legs, ticket, returns)) => self.adopt(legs, ticket, returns),
                Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => return false,
                Err(mpsc::TryRecvError::Empty) => return true,
            }
        }
    }

    /// Takes a flow into the kernel: both sockets or neither.
    fn adopt(&mut self, legs: Legs, mut ticket: Ticket, returns: UnboundedSender<Returned>) {
        ticket.path = Path::Sockmap;
        let id = match self.free.pop() {
            Some(id) => id,
            None if self.flows.len() < self.limits.flows as usize => {
                self.flows.push(None);
                self.flows.len() as u32 - 1
            }
            None => return give_back(legs, ticket, &returns, Why::NotTaken("map_full")),
        };
        match self.insert(id, &legs) {
            Ok(cookies) => {
                let Legs { client, upstream, prefix } = legs;
                self.flows[id as usize] = Some(Flow {
                    sockets: [client, upstream],
                    cookies,
                    prefix,
                    ticket,
                    returns,
                    deadline: Instant::now() + self.limits.idle,
                    leaving: None,
                    congestion: [None, None],
                    interest: [Interest::HANG_UP; 2],
                    seen: [0; 2],
                    poll: None,
                });
                self.watch(id);
            }
            Err(NotInserted::Refused(name)) => {
                self.free.push(id);
                give_back(legs, ticket, &returns, Why::NotTaken(name));
            }
            Err(NotInserted::Lost) => {
                self.free.push(id);
                set_abortive(legs.client.as_fd(), true);
                set_abortive(legs.upstream.as_fd(), true);
                ticket.close(CloseReason::InternalError);
            }
        }
    }

    /// Writes a flow into the maps.
    fn insert(&mut self, id: u32, legs: &Legs) -> Result<[u64; 2], NotInserted> {
        let sockets = [legs.client.as_fd(), legs.upstream.as_fd()];
        let refuse = |_| NotInserted::Refused("socket_gone");
        let cookies = [sys::cookie(sockets[0]).map_err(refuse)?, sys::cookie(sockets[1]).map_err(refuse)?];
        for (side, base) in [(Side::Client, legs.prefix), (Side::Upstream, 0)] {
            let index = direction_index(id, side);
            let direction = self.kernel.directions.direction(index);
            // A run of the program that was under way when the flow before this one left may have reserved again.
            flow_control::hold(direction, self.kernel.budget.budget(), 0);
            direction.initialise(cookies[side.other().index()], base);
            if self.kernel.sources.insert(cookies[side.index()], index, 0).is_err() {
                self.forget(&cookies);
                return Err(NotInserted::Refused("map_full"));
            }
        }
        // The upstream first: it seldom speaks before the client, and what it says until the client is in the map
        // would be passed.
        if let Err(error) = self.kernel.sockets.insert(cookies[1], Raw(sockets[1]), 0) {
            self.forget(&cookies);
            return Err(NotInserted::Refused(insertion_error(&error)));
        }
        if let Err(error) = self.kernel.sockets.insert(cookies[0], Raw(sockets[0]), 0) {
            let _ = self.kernel.sockets.remove(&cookies[1]);
            let passed = self.kernel.directions.direction(direction_index(id, Side::Upstream)).passed();
            self.forget(&cookies);
            return Err(if passed == 0 {
                NotInserted::Refused(insertion_error(&error))
            } else {
                NotInserted::Lost
            });
        }
        for socket in sockets {
            // Runs the verdict over what was queued before. Whatever is found, epoll tells as well.
            let _ = sys::peek(socket, &mut [0]);
        }
        Ok(cookies)
    }

    /// Starts to watch a flow that is in the maps.
    fn watch(&mut self, id: u32) {
        let Some(flow) = self.flow(id) else { return };
        let added = SIDES
            .iter()
            .try_for_each(|side| self.epoll.add(flow.leg(*side), token(id, *side), Interest::HANG_UP));
        if let Err(error) = added {
            warn!(%error, "a flow cannot be watched");
            self.finish(id, Verdict::Close(CloseReason::OutOfResources));
        }
    }

    /// Takes a flow's cookies out of the map of sources.
    fn forget(&mut self, cookies: &[u64; 2]) {
        for cookie in cookies {
            // An error means that it is not there.
            let _ = self.kernel.sources.remove(cookie);
        }
    }

    /// The program reports directions that became congested.
    fn take_congested(&mut self) {
        while let Some(index) = self.kernel.next_congested() {
            let side = SIDES[(index % 2) as usize];
            if let Some(flow) = self.flow_mut(index / 2) {
                flow.congestion[side.index()].get_or_insert_default();
                self.treat(index / 2);
            }
        }
    }

    /// Something happened to a leg.
    fn attend(&mut self, token: u64, broken: bool, finished: bool) {
        let (id, side) = (token as u32 / 2, SIDES[(token % 2) as usize]);
        let Some(flow) = self.flow_mut(id) else { return };
        if broken {
            let error = SockRef::from(&flow.leg(side)).take_error().ok().flatten();
            let error = error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
            return self.finish(id, Verdict::Broken(side, error));
        }
        if finished && flow.leaving.is_none() {
            flow.leaving = Some(Leaving { first: side, stage: Stage::Draining, paused: false });
            flow.poll = None;
        }
        self.treat(id);
    }

    /// Does for a flow what can be done now, and sees to it that it is looked at again if it must be.
    fn treat(&mut self, id: u32) {
        let now = Instant::now();
        let Some(flow) = self.flows.get_mut(id as usize).and_then(Option::as_mut) else {
            return;
        };
        let verdict = Treatment { kernel: &mut self.kernel, scratch: &mut self.scratch, id, flow }.run();
        match verdict {
            Verdict::Stays => {
                let Some(flow) = self.flow(id) else { return };
                let waits = flow.leaving.is_some() || flow.congestion.iter().any(Option::is_some);
                self.schedule(id, waits, now);
                self.set_interest(id);
            }
            verdict => self.finish(id, verdict),
        }
    }

    fn schedule(&mut self, id: u32, waits: bool, now: Instant) {
        let Some(flow) = self.flow_mut(id) else { return };
        if !waits {
            // `poll` takes it out of the list.
            flow.poll = None;
            return;
        }
        let listed = flow.poll.is_some();
        let after = flow.poll.map_or(POLL_MIN, |poll| (poll.after * 2).min(POLL_MAX));
        flow.poll = Some(Poll { at: now + after, after });
        if !listed && !self.polled.contains(&id) {
            self.polled.push(id);
        }
    }

    /// Watches for room and for bytes only where a congested direction waits for them.
    fn set_interest(&mut self, id: u32) {
        let Some(flow) = self.flows.get_mut(id as usize).and_then(Option::as_mut) else {
            return;
        };
        for side in SIDES {
            let interest = Interest {
                read: flow.congestion[side.index()].is_some(),
                write: flow.congestion[side.other().index()].is_some(),
            };
            if flow.interest[side.index()] == interest {
                continue;
            }
            if flow.interest[side.index()].read != interest.read {
                set_abortive(flow.leg(side), interest.read);
            }
            if self.epoll.modify(flow.leg(side), token(id, side), interest).is_ok() {
                flow.interest[side.index()] = interest;
            }
        }
    }

    /// Looks at the flows that wait.
    fn poll(&mut self) {
        if self.polled.is_empty() {
            return;
        }
        let now = Instant::now();
        for id in std::mem::take(&mut self.polled) {
            match self.flow(id).and_then(|flow| flow.poll) {
                None => {}
                Some(poll) if poll.at > now => self.polled.push(id),
                Some(_) => {
                    self.polled.push(id);
                    self.treat(id);
                }
            }
        }
    }

    /// Looks over all flows: for idle ones, for congestion that the ring buffer lost, for credit that lies unused.
    fn sweep(&mut self) {
        let now = Instant::now();
        if now < self.next_sweep {
            return;
        }
        self.next_sweep = now + SWEEP.min(self.limits.idle / 4).max(POLL_MAX);
        let budget = self.kernel.budget.budget();
        let scarce = budget.reserved().load(Ordering::Relaxed) > budget.total().load(Ordering::Relaxed) / 4;
        for id in 0..self.flows.len() as u32 {
            if self.flow(id).is_some() {
                self.look_over(id, now, scarce);
            }
        }
    }

    fn look_over(&mut self, id: u32, now: Instant, scarce: bool) {
        let idle = self.limits.idle;
        let Some(flow) = self.flows.get_mut(id as usize).and_then(Option::as_mut) else {
            return;
        };
        let mut congested = false;
        for side in SIDES {
            let direction = self.kernel.directions.direction(direction_index(id, side));
            let waits = direction.passed() != direction.relayed() || direction.is_broken();
            if waits && flow.congestion[side.index()].is_none() {
                flow.congestion[side.index()].get_or_insert_default();
                congested = true;
            }
            let redirected = direction.redirected();
            let rests = std::mem::replace(&mut flow.seen[side.index()], redirected) == redirected;
            if scarce && rests && direction.reserved().load(Ordering::Relaxed) > 0 {
                if let Ok(info) = sys::tcp_info(flow.leg(side.other())) {
                    direction.revoke_credit();
                    let base = flow.base_written(side.other());
                    flow_control::reserve(direction, self.kernel.budget.budget(), base, &info);
                }
            }
        }
        if flow.deadline <= now {
            let silent = SIDES.iter().filter_map(|side| sys::tcp_info(flow.leg(*side)).ok());
            let silent = silent.map(|info| info.silent).min().unwrap_or(idle);
            if silent >= idle {
                return self.finish(id, Verdict::Close(CloseReason::Idle));
            }
            flow.deadline = now + (idle - silent);
        }
        if congested {
            self.treat(id);
        }
    }

    /// Ends a flow's time in the kernel.
    fn finish(&mut self, id: u32, verdict: Verdict) {
        let Some(flow) = self.remove(id) else { return };
        let Flow { sockets: [client, upstream], prefix, ticket, returns, .. } = flow;
        match verdict {
            Verdict::Stays => {}
            Verdict::Close(reason) => ticket.close(reason),
            Verdict::Broken(side, error) => {
                let other = if side == Side::Client { &upstream } else { &client };
                // The other side must not take the end for a FIN.
                set_abortive(other.as_fd(), true);
                ticket.close(CloseReason::broken(side, &error));
            }
            Verdict::Return(why) => {
                set_abortive(client.as_fd(), false);
                set_abortive(upstream.as_fd(), false);
                give_back(Legs { client, upstream, prefix }, ticket, &returns, why);
            }
        }
    }

    /// Takes a flow out of the maps and of the table.
    fn remove(&mut self, id: u32) -> Option<Flow> {
        let flow = self.flows.get_mut(id as usize)?.take()?;
        self.free.push(id);
        for side in SIDES {
            // Errors mean that it is gone already.
            let _ = self.epoll.remove(flow.leg(side));
            let _ = self.kernel.sockets.remove(&flow.cookies[side.index()]);
        }
        self.forget(&flow.cookies);
        for side in SIDES {
            let direction = self.kernel.directions.direction(direction_index(id, side));
            flow_control::hold(direction, self.kernel.budget.budget(), 0);
        }
        Some(flow)
    }
}

enum NotInserted {
    /// The kernel did not take it; nothing happened to its streams.
    Refused(&'static str),
    /// Bytes arrived while it was half in the map.
    Lost,
}

fn token(id: u32, side: Side) -> u64 {
    u64::from(direction_index(id, side))
}

/// Makes a close, also that of a killed setu, send RST instead of FIN. What was passed and not read is not in the
/// socket's own queue, so that `tcp_close` (net/ipv4/tcp.c) would send a FIN, and a sender that waits for its window
/// to open would go on waiting for a minute.
fn set_abortive(leg: BorrowedFd<'_>, abortive: bool) {
    // An error means that the connection is gone.
    let _ = SockRef::from(&leg).set_linger(abortive.then_some(Duration::ZERO));
}

fn give_back(legs: Legs, mut ticket: Ticket, returns: &UnboundedSender<Returned>, why: Why) {
    if matches!(why, Why::NotTaken(_)) {
        ticket.path = Path::Userspace;
    }
    if let Err(unsent) = returns.send(Returned { legs, ticket, why }) {
        unsent.0.ticket.close(CloseReason::Shutdown);
    }
}

/// Names an error of insertion (`sock_map_update_elem_sys`, net/core/sock_map.c).
fn insertion_error(error: &aya::maps::MapError) -> &'static str {
    let aya::maps::MapError::SyscallError(error) = error else {
        return "map_error";
    };
    match error.io_error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "not_established",
        Some(libc::EINVAL) => "upper_layer_protocol",
        Some(libc::EBUSY) => "socket_in_use",
        Some(libc::E2BIG) => "map_full",
        Some(libc::ENOMEM) => "out_of_memory",
        _ => "map_error",
    }
}

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
struct Treatment<'a> {
    kernel: &'a mut Kernel,
    scratch: &'a mut [u8],
    id: u32,
    flow: &'a mut Flow,
}

impl Treatment<'_> {
    fn run(mut self) -> Verdict {
        for side in SIDES {
            if self.direction(side).is_broken() {
                return Verdict::Close(CloseReason::InternalError);
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
        // An error means that the kernel took it out already, because the socket is closed; epoll tells that too.
        let _ = self.kernel.sockets.remove(&self.flow.cookies[side.index()]);
        Ok(true)
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

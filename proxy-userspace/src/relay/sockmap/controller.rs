//! The thread that owns the kernel path's flows.
//!
//! It sleeps until a flow's FIN, a reset, or congestion wakes it, and looks over all flows about once a second. A
//! message that passes through the kernel wakes nobody.
//!
//! It moves no bytes, so that it never becomes the bottleneck of many flows: a flow that needs userspace leaves the
//! kernel and returns to its worker.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::{Arc, atomic::Ordering, mpsc},
    thread,
    time::{Duration, Instant},
};

use aya::maps::MapError;
use socket2::SockRef;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{debug, error, warn};

use super::{
    budget,
    command::{Command, Legs, Returned},
    counts::Counts,
    flow::{Base, Departure, Flow, POLL_MIN, Poll, SIDES, Seen, direction_index},
    limits::Limits,
    loader::{Kernel, Raw, StartError},
};
use crate::{
    account::{CloseReason, Path, Side, Ticket},
    relay::{
        choice::{SETTLED, STREAM, STREAM_OF_MESSAGES},
        reason::{Refusal, Why},
    },
    sys::{self, DirectionRef, Epoll, Event, EventFd, Interest},
};

/// How soon a flow that waits is looked at again at the latest.
const POLL_MAX: Duration = Duration::from_millis(50);
/// How often all flows are looked over, at most.
const SWEEP: Duration = Duration::from_secs(1);
/// Commands that are obeyed before what happened to flows is looked at: a storm of new ones must not hold up a FIN.
const COMMANDS: usize = 64;

/// Bytes that arrive before a socket on its way into the map is told: no more than fit its first window, so that its
/// receive buffer is not made larger (`tcp_set_rcvlowat`, net/ipv4/tcp.c).
const LOW_WATER: i32 = 32 * 1024;

/// Bytes taken out of a leaving leg together.
const SCRATCH: usize = 256 * 1024;

const TOKEN_WAKE: u64 = u64::MAX;
const TOKEN_EVENTS: u64 = u64::MAX - 1;
const TOKEN_LOG: u64 = u64::MAX - 2;

/// See the module.
pub(super) struct Controller {
    kernel: Kernel,
    limits: Limits,
    epoll: Epoll,
    commands: mpsc::Receiver<Command>,
    counts: Arc<Counts>,
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
        counts: Arc<Counts>,
        wake: &EventFd,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(wake.as_fd(), TOKEN_WAKE, Interest::Read)?;
        epoll.add(kernel.events(), TOKEN_EVENTS, Interest::Read)?;
        if let Some(log) = kernel.log() {
            epoll.add(log, TOKEN_LOG, Interest::Read)?;
        }
        Ok(Self {
            kernel,
            limits,
            epoll,
            commands,
            counts,
            flows: Vec::new(),
            free: Vec::new(),
            polled: Vec::new(),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            next_sweep: Instant::now(),
        })
    }

    /// Whether this thread may use the maps.
    pub(super) fn check_access(&self) -> Result<(), StartError> {
        match self.kernel.sources.get(&0, 0) {
            Ok(_) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(StartError::Access(error)),
        }
    }

    /// Runs until told to stop, or until every worker is gone.
    pub(super) fn run(mut self) {
        let mut events = vec![Event { events: 0, u64: 0 }; 256];
        let mut more = false;
        loop {
            let timeout = if more { Some(Duration::ZERO) } else { self.timeout(Instant::now()) };
            match self.epoll.wait(&mut events, timeout) {
                Ok(ready) => {
                    for ready in ready {
                        match ready.token {
                            TOKEN_WAKE => {}
                            TOKEN_EVENTS => self.take_notices(),
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
            match self.take_commands() {
                Commands::More => more = true,
                Commands::Taken => more = false,
                Commands::Stop => break,
            }
            self.poll();
            self.sweep();
            let reserved = self.kernel.budget.budget().reserved().load(Ordering::Relaxed);
            self.counts.hold((self.flows.len() - self.free.len()) as u64, reserved);
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

    fn take_commands(&mut self) -> Commands {
        for _ in 0..COMMANDS {
            match self.commands.try_recv() {
                Ok(Command::Adopt(legs, ticket, returns)) => self.adopt(legs, ticket, returns),
                Ok(Command::Idle(idle)) => self.limits.idle = idle,
                Ok(Command::Ping(answer)) => {
                    // An error means that nobody waits any more.
                    let _ = answer.send(());
                }
                Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => return Commands::Stop,
                Err(mpsc::TryRecvError::Empty) => return Commands::Taken,
            }
        }
        Commands::More
    }

    /// Takes a flow into the kernel: both sockets or neither.
    fn adopt(&mut self, legs: Legs, mut ticket: Ticket, returns: UnboundedSender<Returned>) {
        ticket.set_path(Path::Sockmap);
        let id = match self.free.pop() {
            Some(id) => id,
            None if self.flows.len() < self.limits.flows as usize => {
                self.flows.push(None);
                self.flows.len() as u32 - 1
            }
            None => return self.refuse(legs, ticket, &returns, Refusal::MapFull),
        };
        match self.insert(id, &legs) {
            Ok(Inserted { cookies, bases }) => {
                let Legs { client, upstream, left } = legs;
                let now = Instant::now();
                if left > 0 {
                    self.counts.resume();
                    debug!("a flow is back in the kernel");
                }
                self.flows[id as usize] = Some(Flow {
                    sockets: [client, upstream],
                    cookies,
                    bases,
                    left,
                    since: now,
                    recalled: self.limits.recall.map(|most| now + most.mul_f64(fastrand::f64() * 2.0)),
                    ticket,
                    returns,
                    idle: self.limits.idle,
                    deadline: now + self.limits.idle,
                    leaving: None,
                    seen: Default::default(),
                    poll: None,
                });
                self.watch(id);
            }
            Err(NotInserted::Refused(refusal)) => {
                self.free.push(id);
                self.refuse(legs, ticket, &returns, refusal);
            }
            Err(NotInserted::Lost) => {
                error!("a connection was reset: bytes came while only one leg was in the kernel");
                self.free.push(id);
                drop(legs);
                ticket.close(CloseReason::InternalError);
            }
        }
    }

    /// Gives back a flow that the kernel does not take.
    fn refuse(&self, legs: Legs, ticket: Ticket, returns: &UnboundedSender<Returned>, refusal: Refusal) {
        self.counts.refuse(refusal);
        give_back(legs, ticket, returns, Why::NotTaken(refusal), Default::default());
    }

    /// Writes a flow into the maps.
    fn insert(&mut self, id: u32, legs: &Legs) -> Result<Inserted, NotInserted> {
        let sockets = [legs.client.as_fd(), legs.upstream.as_fd()];
        let refuse = |_| NotInserted::Refused(Refusal::SocketGone);
        for socket in sockets {
            // Without it the flow works as well, but a stalled one may hold more.
            let _ = sys::bound_receive_buffer(socket, self.limits.receive_buffer);
        }
        let base = |socket| Base::of(socket).map_err(refuse)?.ok_or(NotInserted::Refused(Refusal::Busy));
        let bases = [base(sockets[0])?, base(sockets[1])?];
        let cookies = [sys::cookie(sockets[0]).map_err(refuse)?, sys::cookie(sockets[1]).map_err(refuse)?];
        // The map takes no socket that has received a FIN. Asked beforehand, because a refusal of the second socket
        // after bytes came for the first costs the flow.
        for socket in sockets {
            if sys::tcp_info(socket).map_or(true, |info| info.finished || info.closed) {
                return Err(NotInserted::Refused(Refusal::Finished));
            }
        }
        for side in SIDES {
            let (destination, base) = (cookies[side.other().index()], bases[side.other().index()].written);
            let index = direction_index(id, side);
            let direction = self.kernel.directions.direction(index);
            // A run of the program that was under way when the flow before this one left may have reserved again.
            budget::hold(direction, self.kernel.budget.budget(), 0);
            direction.initialise(destination, base, if self.limits.only_quiet { STREAM } else { u64::MAX });
            if self.kernel.sources.insert(cookies[side.index()], index, 0).is_err() {
                self.forget(&cookies);
                return Err(NotInserted::Refused(Refusal::MapFull));
            }
        }
        // Until both are in the map neither is told of bytes: what one brought would be passed, and would be lost if
        // the other were refused then.
        for socket in sockets {
            sys::set_receive_low_water(socket, LOW_WATER).map_err(refuse)?;
        }
        let inserted = self.insert_sockets(id, &cookies, sockets);
        for socket in sockets {
            let _ = sys::set_receive_low_water(socket, 1);
        }
        inserted?;
        for socket in sockets {
            // Runs the verdict over what was queued before. Whatever is found, epoll tells as well.
            let _ = sys::peek(socket, &mut [0]);
        }
        Ok(Inserted { cookies, bases })
    }

    /// Puts both sockets into the sockhash, or neither.
    fn insert_sockets(
        &mut self,
        id: u32,
        cookies: &[u64; 2],
        sockets: [BorrowedFd<'_>; 2],
    ) -> Result<(), NotInserted> {
        if let Err(error) = self.kernel.sockets.insert(cookies[1], Raw(sockets[1]), 0) {
            self.forget(cookies);
            return Err(NotInserted::Refused(refusal(&error)));
        }
        if let Err(error) = self.kernel.sockets.insert(cookies[0], Raw(sockets[0]), 0) {
            let _ = self.kernel.sockets.remove(&cookies[1]);
            let passed = self.kernel.directions.direction(direction_index(id, Side::Upstream)).passed();
            self.forget(cookies);
            return Err(if passed == 0 { NotInserted::Refused(refusal(&error)) } else { NotInserted::Lost });
        }
        Ok(())
    }

    /// Starts to watch a flow that is in the maps.
    fn watch(&mut self, id: u32) {
        let Some(flow) = self.flow(id) else { return };
        let added = SIDES
            .iter()
            .try_for_each(|side| self.epoll.add(flow.leg(*side), token(id, *side), Interest::HangUp));
        if let Err(error) = added {
            warn!(%error, "a flow cannot be watched");
            self.cut(id, CloseReason::OutOfResources);
        }
    }

    /// Takes a flow's cookies out of the map of sources.
    fn forget(&mut self, cookies: &[u64; 2]) {
        for cookie in cookies {
            // An error means that it is not there.
            let _ = self.kernel.sources.remove(cookie);
        }
    }

    /// The program tells of directions in which there is something to see.
    fn take_notices(&mut self) {
        while let Some(index) = self.kernel.next_notice() {
            let id = index / 2;
            // The flow may have left meanwhile.
            if let Some(why) = self.flow(id).and_then(|flow| self.reason_to_leave(id, flow)) {
                self.leave(id, why);
            }
        }
    }

    /// Whether the kernel is no place for the flow any more.
    fn reason_to_leave(&self, id: u32, flow: &Flow) -> Option<Why> {
        let mut streams = false;
        for side in SIDES {
            let direction = self.direction(id, side);
            if direction.passed() != 0 || direction.is_broken() {
                return Some(Why::Congested);
            }
            if self.limits.only_quiet {
                let (before, now) = (flow.seen[side.index()], Seen::of(direction));
                let moved = now.bytes.wrapping_sub(before.bytes);
                streams |= moved >= STREAM && before.is_stream(now);
                if moved >= STREAM {
                    direction.tell_at(now.bytes + STREAM_OF_MESSAGES);
                }
            }
        }
        streams.then_some(Why::Streams)
    }

    fn direction(&self, id: u32, source: Side) -> DirectionRef<'_> {
        self.kernel.directions.direction(direction_index(id, source))
    }

    /// Something happened to a leg.
    fn attend(&mut self, token: u64, broken: bool, finished: bool) {
        let (id, side) = (token as u32 / 2, SIDES[(token % 2) as usize]);
        let Some(flow) = self.flow(id) else { return };
        if broken {
            let error = SockRef::from(&flow.leg(side)).take_error().ok().flatten();
            let error = error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
            self.cut(id, CloseReason::broken(side, &error));
        } else if finished {
            self.leave(id, Why::Finished(side));
        }
    }

    /// Begins to take a flow out of the kernel.
    fn leave(&mut self, id: u32, why: Why) {
        let Some(flow) = self.flows.get_mut(id as usize).and_then(Option::as_mut) else {
            return;
        };
        flow.begin_to_leave(id, &self.kernel, why);
        self.advance(id);
    }

    /// Takes a flow out of the kernel as far as it goes now, and sees to it that it is looked at again if it must be.
    fn advance(&mut self, id: u32) {
        let Some(flow) = self.flows.get_mut(id as usize).and_then(Option::as_mut) else {
            return;
        };
        let Some(mut leaving) = flow.leaving.take() else { return };
        let scratch = &mut self.scratch;
        let departure = Departure { kernel: &mut self.kernel, scratch, id, flow, leaving: &mut leaving };
        let out = { departure }.advance();
        let waited = flow.poll.is_some();
        let (why, after) = (leaving.why, flow.poll.map_or(POLL_MIN, |poll| (poll.after * 2).min(POLL_MAX)));
        flow.leaving = Some(leaving);
        match out {
            Ok(true) => self.give_back(id, why),
            Ok(false) => {
                flow.poll = Some(Poll { at: Instant::now() + after, after });
                if !waited {
                    self.polled.push(id);
                }
            }
            Err((side, error)) => self.cut(id, CloseReason::broken(side, &error)),
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
                    self.advance(id);
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
        let recall = self.limits.recall.unwrap_or(SWEEP);
        self.next_sweep = now + SWEEP.min(self.limits.idle / 4).max(POLL_MAX).min(recall);
        let budget = self.kernel.budget.budget();
        let scarce = budget.reserved().load(Ordering::Relaxed) > budget.total().load(Ordering::Relaxed) / 4;
        for id in 0..self.flows.len() as u32 {
            if self.flow(id).is_some() {
                self.look_over(id, now, scarce);
            }
        }
    }

    fn look_over(&mut self, id: u32, now: Instant, scarce: bool) {
        let why = self.flow(id).filter(|flow| flow.leaving.is_none()).and_then(|flow| {
            let recalled = flow.recalled.is_some_and(|at| at <= now);
            self.reason_to_leave(id, flow).or(recalled.then_some(Why::Recalled))
        });
        let Some(flow) = self.flows.get_mut(id as usize).and_then(Option::as_mut) else {
            return;
        };
        let mut moved = [0; 2];
        for side in SIDES {
            let direction = self.kernel.directions.direction(direction_index(id, side));
            let seen = Seen::of(direction);
            let before = std::mem::replace(&mut flow.seen[side.index()], seen);
            moved[side.index()] = seen.bytes.wrapping_sub(before.bytes);
            if self.limits.only_quiet && before != seen {
                direction.tell_at(seen.bytes + STREAM);
            }
            if scarce
                && before == seen
                && direction.reserved().load(Ordering::Relaxed) > 0
                && let Ok(info) = sys::tcp_info(flow.leg(side.other()))
            {
                direction.revoke_credit();
                let base = flow.base(side.other()).written;
                budget::reserve(direction, self.kernel.budget.budget(), base, &info);
            }
        }
        count(&mut flow.ticket, moved);
        let idle = flow.idle;
        if flow.deadline <= now {
            let silent = SIDES.iter().filter_map(|side| sys::tcp_info(flow.leg(*side)).ok());
            let silent = silent.map(|info| info.silent).min().unwrap_or(idle);
            if silent >= idle {
                return self.cut(id, CloseReason::Idle);
            }
            flow.deadline = now + (idle - silent);
        }
        if let Some(why) = why {
            self.leave(id, why);
        }
    }

    /// Cuts a flow: its peers must not take that for the end.
    fn cut(&mut self, id: u32, reason: CloseReason) {
        if let Some(flow) = self.remove(id) {
            flow.ticket.close(reason);
        }
    }

    /// Returns a flow that has left the kernel to its worker.
    fn give_back(&mut self, id: u32, why: Why) {
        let Some(flow) = self.remove(id) else { return };
        for side in SIDES {
            // Where the kernel does not know the lock (before Linux 5.14) it keeps its size.
            let _ = sys::lock_receive_buffer(&flow.leg(side), false);
        }
        let Flow { sockets: [client, upstream], left, since, ticket, returns, leaving, .. } = flow;
        let misplaced = matches!(why, Why::Congested | Why::Streams);
        let left = if since.elapsed() > SETTLED { 0 } else { left } + u32::from(misplaced);
        let legs = Legs { client, upstream, left };
        match why {
            Why::Congested => self.counts.congest(),
            Why::Streams => self.counts.stream(),
            _ => {}
        }
        debug!(reason = why.name(), "a flow left the kernel");
        let collected = leaving.map(|leaving| leaving.collected).unwrap_or_default();
        give_back(legs, ticket, &returns, why, collected);
    }

    /// Takes a flow out of the maps and of the table.
    fn remove(&mut self, id: u32) -> Option<Flow> {
        let mut flow = self.flows.get_mut(id as usize)?.take()?;
        self.free.push(id);
        for side in SIDES {
            // Errors mean that it is gone already.
            let _ = self.epoll.remove(flow.leg(side));
            let _ = self.kernel.sockets.remove(&flow.cookies[side.index()]);
        }
        self.forget(&flow.cookies);
        let mut moved = [0; 2];
        for side in SIDES {
            let direction = self.kernel.directions.direction(direction_index(id, side));
            budget::hold(direction, self.kernel.budget.budget(), 0);
            moved[side.index()] = direction.redirected().wrapping_sub(flow.seen[side.index()].bytes);
        }
        count(&mut flow.ticket, moved);
        Some(flow)
    }
}

impl Drop for Controller {
    /// The end of setu, or of this thread by a defect. Flows in the kernel are cut, for what is on its way in them is lost;
    /// those that wait to be taken go on in userspace.
    fn drop(&mut self) {
        for id in 0..self.flows.len() as u32 {
            let reason = if thread::panicking() { CloseReason::InternalError } else { CloseReason::Shutdown };
            self.cut(id, reason);
        }
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Adopt(legs, ticket, returns) = command {
                give_back(legs, ticket, &returns, Why::NotTaken(Refusal::Ended), Default::default());
            }
        }
    }
}

/// Counts what the kernel has handed over since the flow was looked at last, by source. Nobody saw in which order. A
/// client's hello went through userspace, so what came of it here is taken to follow what the upstream said.
fn count(ticket: &mut Ticket, moved: [u64; 2]) {
    for side in [Side::Upstream, Side::Client] {
        let bytes = moved[side.index()];
        ticket.counters().count_bytes(side, bytes);
        ticket.moved(side, bytes);
    }
}

/// Whether there are commands left.
enum Commands {
    More,
    Taken,
    Stop,
}

/// A flow that is in the maps.
struct Inserted {
    cookies: [u64; 2],
    bases: [Base; 2],
}

enum NotInserted {
    /// The kernel did not take it; nothing happened to its streams.
    Refused(Refusal),
    /// Bytes arrived while it was half in the map.
    Lost,
}

fn token(id: u32, side: Side) -> u64 {
    u64::from(direction_index(id, side))
}

fn give_back(
    legs: Legs,
    mut ticket: Ticket,
    returns: &UnboundedSender<Returned>,
    why: Why,
    collected: [Vec<u8>; 2],
) {
    if !matches!(why, Why::Finished(_)) {
        ticket.set_path(Path::Userspace);
    }
    if let Err(unsent) = returns.send(Returned { legs, ticket, why, collected }) {
        unsent.0.ticket.close(CloseReason::Shutdown);
    }
}

#[cfg(test)]
mod tests;

/// Names an error of insertion (`sock_map_update_elem_sys`, net/core/sock_map.c).
fn refusal(error: &aya::maps::MapError) -> Refusal {
    let aya::maps::MapError::SyscallError(error) = error else {
        return Refusal::MapError;
    };
    match error.io_error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => Refusal::NotEstablished,
        Some(libc::EINVAL) => Refusal::UpperLayerProtocol,
        Some(libc::EBUSY) => Refusal::SocketInUse,
        Some(libc::E2BIG) => Refusal::MapFull,
        Some(libc::ENOMEM) => Refusal::OutOfMemory,
        _ => Refusal::MapError,
    }
}

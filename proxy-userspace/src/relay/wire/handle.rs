//! A worker's end of the protocol with the keeper.
//!
//! All that a worker's flows say and hear goes through one socket. What is heard is noted in the flow's slot, and wakes its
//! task. Once a flow is on the wire its slot has its ticket, and nothing else is left of it here.

use std::{
    collections::{HashMap, VecDeque},
    fmt, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net,
    },
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::{
    io::Interest,
    net::{TcpStream, UnixDatagram},
    task::JoinHandle,
};

use super::{
    counts::{Counts, Farewell},
    message::{ADOPTED, FlowNames, FromKeeper, Limits, MOST, ToKeeper, WireEnd, WireRefusal},
};
use crate::{
    account::{CloseReason, Path, Side, Ticket},
    sys::seqpacket,
};

/// What an operator is told when the keeper has ended by a defect or a signal.
pub(crate) const NO_KEEPER: &str = "the keeper of the wire is gone: no connection goes on it any more, and nobody ends those on \
    it; restart setu (`systemctl restart setu`, or another with `setu run --replace`), which takes them over where there is a \
    BPF file system";

/// What an operator is told while another keeper has the connections of the same state directory.
pub(crate) const WAITS: &str = "another keeper has the connections of this state directory: nothing goes on the wire until it \
    ends; give each setu a tls.state_dir of its own";

/// A worker's way to the keeper.
#[derive(Debug, Clone)]
pub(crate) struct Wire(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// One of sequenced packets, of which the runtime need know no more than of one of datagrams.
    socket: UnixDatagram,
    slots: Mutex<Slots>,
    counts: Arc<Counts>,
    adopt: Adopt,
}

/// Makes the account of a flow that a predecessor left.
pub(crate) struct Adopt(pub(crate) Box<dyn Fn(u16, FlowNames) -> Ticket + Send + Sync>);

impl fmt::Debug for Adopt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Adopt")
    }
}

/// Flows, by the name by which the keeper knows them.
#[derive(Debug, Default)]
struct Slots {
    all: Vec<Slot>,
    free: Vec<u32>,
    /// Those that a predecessor left on the wire.
    adopted: HashMap<u32, Ticket>,
    /// What there was no room for.
    unsaid: VecDeque<ToKeeper>,
    /// The keeper is gone.
    ended: bool,
}

#[derive(Debug)]
enum Slot {
    Free,
    /// The relay has it. The waker is its task's.
    Offered {
        heard: Heard,
        waker: Option<Waker>,
    },
    /// It ended before it went on the wire, which the keeper is still to confirm.
    Dropped,
    /// It is on the wire.
    Spliced(Ticket),
}

/// What the keeper said last of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Nothing,
    Ready,
    Armed,
    Settled,
    Busy,
    Refused(WireRefusal),
    Gone(WireEnd, [u64; 2]),
}

/// A flow that is offered. Dropping it takes that back, unless the flow is on the wire.
#[derive(Debug)]
pub(crate) struct Offer {
    wire: Arc<Inner>,
    id: u32,
    /// The slot is another's already, or the ticket's.
    is_settled: bool,
}

/// Whether a flow may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is looked at.
    Waits,
    /// In the next moment of quiet.
    Ready,
    /// It stays with the relay.
    Refused(WireRefusal),
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is on the wire.
    Armed,
    /// Not now.
    Busy,
    /// It stays with the relay.
    Refused(WireRefusal),
    /// The keeper is gone, and nobody knows whether the flow is on the wire.
    Lost,
}

impl Wire {
    /// Takes a worker's socket. Whatever else is here must be called within its runtime.
    ///
    /// # Errors
    /// The runtime cannot watch it.
    pub(crate) fn new(socket: OwnedFd, counts: Arc<Counts>, adopt: Adopt) -> io::Result<Self> {
        let socket = UnixDatagram::from_std(net::UnixDatagram::from(socket))?;
        Ok(Self(Arc::new(Inner { socket, slots: Mutex::default(), counts, adopt })))
    }

    /// Listens to the keeper until it is gone.
    pub(crate) fn listen(&self) -> JoinHandle<()> {
        let inner = self.0.clone();
        tokio::spawn(async move {
            inner.listen().await;
            inner.end();
            if let Some(farewell) = inner.counts.parted().await {
                inner.release(farewell);
            }
        })
    }

    /// Offers a flow. `None`: not now, there is no room for more under way.
    ///
    /// # Errors
    /// Never again.
    pub(crate) fn offer(
        &self,
        legs: [&TcpStream; 2],
        listener: u16,
        limits: Limits,
    ) -> Result<Option<Offer>, WireRefusal> {
        let mut slots = self.0.slots();
        if slots.ended {
            self.0.counts.refuse(WireRefusal::KeeperGone);
            return Err(WireRefusal::KeeperGone);
        }
        let id = slots.free.pop().unwrap_or_else(|| {
            slots.all.push(Slot::Free);
            (slots.all.len() - 1) as u32
        });
        let message = ToKeeper::Offer { id, listener, limits }.encode();
        let legs = legs.map(|leg| leg.as_fd());
        if seqpacket::send(self.0.socket.as_fd(), message.as_ref(), &legs).is_err() {
            slots.free.push(id);
            return Ok(None);
        }
        slots.all[id as usize] = Slot::Offered { heard: Heard::Nothing, waker: None };
        drop(slots);
        Ok(Some(Offer { wire: self.0.clone(), id, is_settled: false }))
    }
}

impl Inner {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn listen(&self) {
        let mut buffer = [0; MOST];
        loop {
            if self.socket.readable().await.is_err() {
                return;
            }
            loop {
                let receive = || seqpacket::receive(self.socket.as_fd(), &mut buffer);
                match self.socket.try_io(Interest::READABLE, receive) {
                    Ok(Some(received)) => {
                        if let Some(message) = buffer.get(..received.len).and_then(FromKeeper::decode) {
                            self.hear(message);
                        }
                        // It has read what it answers.
                        self.say_late();
                    }
                    Ok(None) => return,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => return,
                }
            }
        }
    }

    fn hear(&self, message: FromKeeper) {
        let (id, news) = match message {
            FromKeeper::Ready { id, .. } => (id, Heard::Ready),
            FromKeeper::Armed { id } => (id, Heard::Armed),
            FromKeeper::Settled { id } => (id, Heard::Settled),
            FromKeeper::Busy { id } => (id, Heard::Busy),
            FromKeeper::Refused { id, refusal } => (id, Heard::Refused(refusal)),
            FromKeeper::Dropped { id } => return self.free(id, |slot| matches!(slot, Slot::Dropped)),
            FromKeeper::Moved { id, bytes } => return self.count(id, bytes),
            FromKeeper::Adopted { id, listener, names } => return self.adopt(id, listener, names),
            FromKeeper::Gone { id, end, bytes } => (id, Heard::Gone(end, bytes)),
            FromKeeper::Waits { waits } => return self.counts.wait_for_another(waits),
        };
        let mut slots = self.slots();
        if id & ADOPTED != 0 {
            let ticket = slots.adopted.remove(&id);
            drop(slots);
            if let (Some(ticket), Heard::Gone(end, bytes)) = (ticket, news) {
                self.close(ticket, end, bytes);
            }
            return;
        }
        let Some(slot) = slots.all.get_mut(id as usize) else { return };
        match (&mut *slot, news) {
            (Slot::Offered { heard, waker }, _) => {
                *heard = news;
                if let Some(waker) = waker.take() {
                    waker.wake();
                }
            }
            (Slot::Spliced(ticket), Heard::Settled) => ticket.without_sockets(),
            (Slot::Spliced(_), Heard::Gone(end, bytes)) => {
                let Slot::Spliced(ticket) = std::mem::replace(slot, Slot::Free) else { return };
                slots.free.push(id);
                drop(slots);
                self.close(ticket, end, bytes);
            }
            // Both crossed each other: the keeper has forgotten it already.
            (Slot::Dropped, Heard::Refused(_) | Heard::Gone(..)) => {
                *slot = Slot::Free;
                slots.free.push(id);
            }
            _ => {}
        }
    }

    fn count(&self, id: u32, bytes: [u64; 2]) {
        let mut slots = self.slots();
        let ticket = match slots.all.get_mut(id as usize) {
            Some(Slot::Spliced(ticket)) => ticket,
            _ => match slots.adopted.get_mut(&id) {
                Some(ticket) => ticket,
                None => return,
            },
        };
        count(ticket, bytes);
    }

    fn adopt(&self, id: u32, listener: u16, names: FlowNames) {
        let mut ticket = (self.adopt.0)(listener, names);
        ticket.set_path(Path::Wire);
        ticket.without_sockets();
        self.counts.adopt();
        self.slots().adopted.insert(id, ticket);
    }

    /// Frees a slot, if it is such a one.
    fn free(&self, id: u32, is_such: impl Fn(&Slot) -> bool) {
        let mut slots = self.slots();
        if slots.all.get(id as usize).is_some_and(is_such) {
            slots.all[id as usize] = Slot::Free;
            slots.free.push(id);
        }
    }

    /// A flow on the wire is over.
    fn close(&self, mut ticket: Ticket, end: WireEnd, bytes: [u64; 2]) {
        tracing::debug!(end = end.name(), "over on the wire:{}", end.meaning());
        self.counts.end();
        count(&mut ticket, bytes);
        ticket.close(match end {
            WireEnd::ClientFinished => CloseReason::ClientClosed,
            WireEnd::UpstreamFinished => CloseReason::UpstreamClosed,
            WireEnd::ClientReset => CloseReason::ClientReset,
            WireEnd::UpstreamReset => CloseReason::UpstreamReset,
            WireEnd::Idle => CloseReason::Idle,
            WireEnd::HalfClosed => CloseReason::HalfCloseTimeout,
            WireEnd::ClientVanished => CloseReason::ClientTimedOut,
            WireEnd::UpstreamVanished => CloseReason::UpstreamTimedOut,
            WireEnd::Shutdown => CloseReason::Shutdown,
            WireEnd::Torn => {
                self.counts.tear();
                CloseReason::InternalError
            }
        });
    }

    /// The keeper is gone. What is on the wire goes on, if it is pinned: its ports and its places stay taken.
    fn end(&self) {
        let mut slots = self.slots();
        slots.ended = true;
        for slot in &mut slots.all {
            if let Slot::Offered { waker, .. } = slot
                && let Some(waker) = waker.take()
            {
                waker.wake();
            }
        }
        if self.counts.farewell().is_none() && !self.counts.lose_keeper() {
            tracing::error!("{NO_KEEPER}");
        }
    }

    /// Nothing of what was on the wire is this setu's any more.
    fn release(&self, farewell: Farewell) {
        let mut slots = self.slots();
        let spliced = slots.all.iter_mut().filter(|slot| matches!(slot, Slot::Spliced(_)));
        let spliced: Vec<_> = spliced.map(|slot| std::mem::replace(slot, Slot::Dropped)).collect();
        let adopted = std::mem::take(&mut slots.adopted);
        drop(slots);
        let spliced = spliced.into_iter().filter_map(|slot| match slot {
            Slot::Spliced(ticket) => Some(ticket),
            _ => None,
        });
        for ticket in spliced.chain(adopted.into_values()) {
            self.part(ticket, farewell);
        }
    }

    fn part(&self, ticket: Ticket, farewell: Farewell) {
        self.counts.end();
        match farewell {
            Farewell::Stop => ticket.close(CloseReason::Shutdown),
            Farewell::Yield => ticket.hand_on(),
        }
    }

    fn say(&self, message: ToKeeper) -> io::Result<()> {
        seqpacket::send(self.socket.as_fd(), message.encode().as_ref(), &[])
    }

    /// Says what there was no room for before, as far as there is now.
    fn say_late(&self) {
        let mut slots = self.slots();
        while let Some(message) = slots.unsaid.front().copied() {
            if self.say(message).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                return;
            }
            slots.unsaid.pop_front();
        }
    }
}

/// Bytes were moved on the wire, by the side that they came from.
fn count(ticket: &mut Ticket, bytes: [u64; 2]) {
    for side in [Side::Client, Side::Upstream] {
        ticket.count_moved(side, bytes[side.index()]);
    }
}

impl Offer {
    /// How it stands. Its task is woken when that changes.
    pub(crate) fn standing(&self, cx: &Context<'_>) -> Standing {
        match self.look(cx) {
            (Heard::Refused(refusal), _) => Standing::Refused(refusal),
            (_, true) => Standing::Refused(WireRefusal::KeeperGone),
            (Heard::Nothing, _) => Standing::Waits,
            _ => Standing::Ready,
        }
    }

    /// What was heard last, and whether nothing more will be.
    fn look(&self, cx: &Context<'_>) -> (Heard, bool) {
        let mut slots = self.wire.slots();
        let ended = slots.ended;
        match slots.all.get_mut(self.id as usize) {
            Some(Slot::Offered { heard, waker }) => {
                if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                (*heard, ended)
            }
            _ => (Heard::Nothing, true),
        }
    }

    /// Has the keeper put the flow on the wire. Until it is answered nobody here may touch the sockets.
    pub(crate) async fn take(&mut self, ahead: [u32; 2]) -> Taken {
        if let Some(Slot::Offered { heard, .. }) = self.wire.slots().all.get_mut(self.id as usize) {
            *heard = Heard::Nothing;
        }
        if self.wire.say(ToKeeper::Take { id: self.id, ahead }).is_err() {
            // The keeper has much to do. It was ready, and is again.
            if let Some(Slot::Offered { heard, .. }) = self.wire.slots().all.get_mut(self.id as usize) {
                *heard = Heard::Ready;
            }
            return Taken::Busy;
        }
        let taken = std::future::poll_fn(|cx| match self.look(cx) {
            (Heard::Armed | Heard::Settled | Heard::Gone(..), _) => Poll::Ready(Taken::Armed),
            (Heard::Busy, _) => Poll::Ready(Taken::Busy),
            (Heard::Refused(refusal), _) => Poll::Ready(Taken::Refused(refusal)),
            (_, true) => Poll::Ready(Taken::Lost),
            (Heard::Nothing | Heard::Ready, false) => Poll::Pending,
        })
        .await;
        if taken == Taken::Busy {
            self.wire.counts.be_busy();
        }
        taken
    }

    /// The flow stays with the relay.
    pub(crate) fn refused(mut self, refusal: WireRefusal) {
        self.is_settled = true;
        tracing::debug!(reason = refusal.name(), "not taken on the wire");
        self.wire.counts.refuse(refusal);
        self.wire.free(self.id, |slot| matches!(slot, Slot::Offered { .. }));
    }

    /// The flow is on the wire, with its ticket.
    pub(crate) fn settle(mut self, mut ticket: Ticket) {
        self.is_settled = true;
        ticket.set_path(Path::Wire);
        self.wire.counts.hand_over();
        let mut slots = self.wire.slots();
        let ended = slots.ended;
        let Some(slot) = slots.all.get_mut(self.id as usize) else { return };
        match slot {
            // It was over before this.
            Slot::Offered { heard: Heard::Gone(end, bytes), .. } => {
                let (end, bytes) = (*end, *bytes);
                *slot = Slot::Free;
                slots.free.push(self.id);
                drop(slots);
                self.wire.close(ticket, end, bytes);
            }
            slot => {
                // Nobody would take the ticket out again.
                if ended && let Some(farewell) = self.wire.counts.farewell() {
                    drop(slots);
                    return self.wire.part(ticket, farewell);
                }
                if matches!(slot, Slot::Offered { heard: Heard::Settled, .. }) {
                    ticket.without_sockets();
                }
                *slot = Slot::Spliced(ticket);
            }
        }
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        let mut slots = self.wire.slots();
        match slots.all.get_mut(self.id as usize) {
            // The keeper has forgotten it, and would answer nothing.
            Some(slot @ Slot::Offered { heard: Heard::Refused(_) | Heard::Gone(..), .. }) => {
                *slot = Slot::Free;
                slots.free.push(self.id);
                return;
            }
            Some(slot @ Slot::Offered { .. }) => *slot = Slot::Dropped,
            _ => {}
        }
        // What cannot be said now is said once the keeper answers what it was told before: it has the sockets.
        slots.unsaid.push_back(ToKeeper::Drop { id: self.id });
        drop(slots);
        self.wire.say_late();
    }
}

#[cfg(test)]
mod tests;

//! A flow's way from here to the wire.
//!
//! It is offered once it has lasted, and taken in a moment of quiet: nothing in hand, nothing in either receive queue, nothing
//! that was written and not sent. A flow that streams has no such moment by itself. Then the *tap* is closed: its ends are
//! offered hardly any room, so that within about a round trip little is on its way. That little is *held*: it is forwarded,
//! and left in the receive queue all the same, so that no room comes from taking it out, and the ends stand. They hear of room
//! again from each other, once the flow is on the wire.

use std::{
    io,
    os::fd::AsFd as _,
    pin::Pin,
    task::Context,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{SendFlags, send},
};
use tokio::{
    net::TcpStream,
    time::{Sleep, sleep_until},
};

use crate::{
    account::{Side, Ticket},
    relay::{
        choice::HandOver,
        legs::is_read,
        wire::{Limits, Offer, Standing, Wire, WireRefusal},
    },
    sys,
};

/// How soon a flow is looked at again of which an end has not heard the end of the handshake.
const UNHEARD: Duration = Duration::from_millis(100);
/// How soon a flow is looked at again that could not be taken.
const AGAIN: Duration = Duration::from_millis(1);
/// How long a moment of quiet is waited for before the tap is closed, and how long it stays so.
const BY_ITSELF: Duration = Duration::from_millis(5);
const CLOSED: Duration = Duration::from_millis(500);
/// Bytes in a receive queue that can be held. From far away a few segments come in a round trip, once the tap is closed; from
/// near one comes after the other, until a receive buffer of that size (`buffers.rs`) is full.
const HELD: u64 = 512 * 1024;
/// How long a flow that could not be taken is left alone, at first and at most.
const REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(64);

/// A way to the wire.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lift<'a> {
    pub(crate) wire: &'a Wire,
    /// Whose the flow is, and when it is over by silence.
    pub(crate) listener: u16,
    pub(crate) limits: Limits,
    /// When a flow that the wire refuses may go to the kernel.
    pub(crate) without: HandOver,
}

/// How far a flow is on it.
#[derive(Debug)]
pub(super) struct Ascent<'a> {
    lift: Option<Lift<'a>>,
    offer: Option<Offer>,
    /// When the keeper was ready for it.
    ready: Option<Instant>,
    /// Not to be tried before this.
    not_before: Option<Instant>,
    /// What the ends were offered before the tap was closed, and since when it is.
    tap: Option<(Instant, [Option<i32>; 2])>,
    /// What was forwarded of what is in the receive queues, bytes, while they are held.
    hold: Option<[usize; 2]>,
    rest: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing now.
    Stay,
    /// This is a moment in which it can be taken.
    Take,
    /// The wire is none of its.
    Refused(WireRefusal),
}

impl<'a> Ascent<'a> {
    /// `None`: there is no way.
    pub(super) fn new(lift: Option<Lift<'a>>) -> Self {
        Self {
            lift,
            offer: None,
            ready: None,
            not_before: None,
            tap: None,
            hold: None,
            rest: REST,
            timer: None,
        }
    }

    /// The flow goes nowhere any more. Must come before its sockets are closed.
    pub(super) fn give_up(&mut self, legs: [&TcpStream; 2]) {
        self.open(legs);
        *self = Self::new(None);
    }

    /// Whether it is over, or never began.
    pub(super) fn is_over(&self) -> bool {
        self.lift.is_none()
    }

    /// Looks what is to be done, for a flow that has lasted and of which `whole` says that nothing is in hand.
    pub(super) fn step(
        &mut self,
        cx: &mut Context<'_>,
        whole: bool,
        legs: [&TcpStream; 2],
        ticket: &mut Ticket,
    ) -> Step {
        let Some(lift) = self.lift else { return Step::Stay };
        let now = Instant::now();
        if let Some(not_before) = self.not_before {
            if now < not_before {
                self.wake(cx, not_before);
                return Step::Stay;
            }
            self.not_before = None;
        }
        let Some(offer) = &self.offer else {
            if !legs.iter().all(|leg| is_heard(leg)) {
                self.not_before = Some(now + UNHEARD);
                self.wake(cx, now + UNHEARD);
                return Step::Stay;
            }
            match lift.wire.offer(legs, lift.listener, lift.limits) {
                Ok(offer) => self.offer = offer,
                Err(refusal) => {
                    *self = Self::new(None);
                    return Step::Refused(refusal);
                }
            }
            if self.offer.is_none() {
                self.rest(cx, now);
                return Step::Stay;
            }
            return self.step(cx, whole, legs, ticket);
        };
        match offer.standing(cx) {
            Standing::Waits => return Step::Stay,
            Standing::Refused(refusal) => {
                self.open(legs);
                if let Some(offer) = self.offer.take() {
                    offer.refused(refusal);
                }
                *self = Self::new(None);
                return Step::Refused(refusal);
            }
            Standing::Ready => {}
        }
        // Also where there are moments enough, and the keeper finds none of them right.
        if let Some((since, _)) = self.tap
            && now - since >= CLOSED
        {
            self.open(legs);
            self.ready = None;
            self.rest(cx, now);
            return Step::Stay;
        }
        if self.tap.is_some() && whole && self.hold.is_none() && legs.iter().all(|leg| is_little(leg)) {
            self.hold = Some([0; 2]);
        }
        if let Some(mut ahead) = self.hold {
            let is_held = forward(legs, &mut ahead, ticket);
            self.hold = Some(ahead);
            match is_held {
                Ok(true) => return Step::Take,
                Ok(false) => {}
                // More came than can be held, or an end; it is met again by whoever reads.
                Err(_) => self.let_go(legs),
            }
        } else if whole && legs.iter().all(|leg| is_read(leg) && is_sent(leg)) {
            return Step::Take;
        }
        let ready = *self.ready.get_or_insert(now);
        if self.tap.is_none() && now - ready >= BY_ITSELF {
            self.close(legs, now);
        }
        self.wake(cx, now + AGAIN);
        Step::Stay
    }

    /// The offer, which is to be taken, and what was forwarded of what is in the receive queues.
    pub(super) fn offer(&mut self) -> Option<(&mut Offer, [u32; 2])> {
        let ahead = self.hold.unwrap_or_default().map(|bytes| bytes as u32);
        self.offer.as_mut().map(|offer| (offer, ahead))
    }

    /// Whether what comes is left in the receive queues, and forwarded here.
    pub(super) fn is_holding(&self) -> bool {
        self.hold.is_some()
    }

    /// It was taken.
    pub(super) fn arrived(&mut self) -> Option<Offer> {
        self.offer.take()
    }

    /// It was not taken; again in a while.
    pub(super) fn busy(&mut self) {
        self.not_before = Some(Instant::now() + AGAIN);
    }

    fn rest(&mut self, cx: &mut Context<'_>, now: Instant) {
        let not_before = now + self.rest;
        self.not_before = Some(not_before);
        self.wake(cx, not_before);
        self.rest = (self.rest * 2).min(LONGEST_REST);
    }

    /// Has the task woken at a time, by a timer that is made once: each message of a flow comes by here.
    fn wake(&mut self, cx: &mut Context<'_>, at: Instant) {
        let at = at.into();
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        // It has not elapsed, or is looked at in a moment.
        if timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }

    fn close(&mut self, legs: [&TcpStream; 2], now: Instant) {
        let before = legs.map(|leg| {
            let before = sys::window_clamp(leg.as_fd()).ok()?;
            sys::set_window_clamp(leg.as_fd(), 1).ok()?;
            Some(before)
        });
        self.tap = Some((now, before));
    }

    /// Takes out what was forwarded: whoever reads goes on behind it.
    fn let_go(&mut self, legs: [&TcpStream; 2]) {
        for (leg, bytes) in legs.into_iter().zip(self.hold.take().unwrap_or_default()) {
            let mut left = bytes;
            while left > 0 {
                match sys::discard(leg.as_fd(), left) {
                    0 => break,
                    discarded => left -= discarded,
                }
            }
        }
    }

    fn open(&mut self, legs: [&TcpStream; 2]) {
        self.let_go(legs);
        let Some((_, before)) = self.tap.take() else { return };
        for (leg, before) in legs.into_iter().zip(before) {
            // An error means that the connection is over.
            let _ = before.map(|before| sys::set_window_clamp(leg.as_fd(), before));
        }
    }
}

/// Whether the peer has shown that it heard the end of the handshake. An error is met again by whoever reads.
fn is_heard(leg: &TcpStream) -> bool {
    sys::leg_info(leg.as_fd()).map_or(true, |info| info.heard)
}

/// Whether what is in the receive queue can be held.
fn is_little(leg: &TcpStream) -> bool {
    sys::queued(leg.as_fd()).is_ok_and(|bytes| bytes <= HELD)
}

/// Forwards what is in the receive queues and was not yet, and leaves it there. Whether all of it is sent.
///
/// # Errors
/// There is more than can be held; a leg's.
fn forward(legs: [&TcpStream; 2], ahead: &mut [usize; 2], ticket: &mut Ticket) -> io::Result<bool> {
    let mut all = true;
    for side in [Side::Client, Side::Upstream] {
        let (from, to) = (legs[side.index()], legs[side.other().index()]);
        let (queued, ahead) = (sys::queued(from.as_fd())?, &mut ahead[side.index()]);
        if queued > HELD {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if queued as usize > *ahead {
            let mut bytes = vec![0; queued as usize];
            let len = sys::peek(from.as_fd(), &mut bytes)?;
            let new = bytes.get(*ahead..len).unwrap_or_default();
            match send(to, new, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    *ahead += sent;
                    ticket.count_moved(side, sent as u64);
                }
                Err(Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        all &= queued as usize == *ahead && is_sent(to);
    }
    Ok(all)
}

/// Whether all that was written was sent, acknowledged or not. An error is met again by whoever writes.
fn is_sent(leg: &TcpStream) -> bool {
    matches!(sys::unsent(leg.as_fd()), Ok(0))
}

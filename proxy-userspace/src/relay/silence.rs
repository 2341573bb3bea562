//! When a flow has been silent for too long.
//!
//! Segments do not touch the timer, which would cost more than to move them: when it fires, the kernel knows since when
//! nothing has moved.

use std::{
    os::fd::AsFd as _,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    time::{Instant, Sleep},
};

use super::{legs::reset_on_close, vanished};
use crate::{account::CloseReason, config::Timeouts, sys};

/// A flow that has lasted for so long gets what costs more than all that a shorter one, a probe's or a health check's,
/// would move: the kernel watches its peers.
const LASTING: Duration = Duration::from_millis(250);

/// How soon a flow is looked at of which both directions wait for room, and each that is accounted ([`super::holdings`]).
const LOOK: Duration = Duration::from_secs(1);

/// A flow's timer.
pub(super) struct Silence<'a> {
    timer: Pin<&'a mut Sleep>,
    is_set: bool,
    half: bool,
    fired: bool,
    /// Both directions wait for room.
    waits: bool,
    /// The flow is accounted.
    often: bool,
    /// The kernel does not watch the legs yet.
    is_new: bool,
    timeouts: &'a Timeouts,
    look: Option<Duration>,
}

impl<'a> Silence<'a> {
    /// Puts a timer in charge of a flow of which no side has finished. It fires each `look` as well, if that is given.
    /// A flow that `is_new` is watched from [`LASTING`] on.
    pub(super) fn new(
        timer: Pin<&'a mut Sleep>,
        timeouts: &'a Timeouts,
        look: Option<Duration>,
        is_new: bool,
    ) -> Self {
        let mut silence = Self {
            timer,
            is_set: false,
            half: false,
            fired: false,
            waits: false,
            often: false,
            is_new,
            timeouts,
            look,
        };
        silence.set(timeouts.idle);
        silence
    }

    /// Lets the timer fire after `rest`, or sooner where there is something to do.
    fn set(&mut self, rest: Duration) {
        let new = self.is_new.then_some(LASTING);
        let waits = (self.waits || self.often).then_some(LOOK);
        let after = [self.look, new, waits].into_iter().flatten().fold(rest, Duration::min);
        self.timer.as_mut().reset(Instant::now() + after);
        self.is_set = false;
    }

    /// Whether it has fired since this was asked last.
    pub(super) fn take_fired(&mut self) -> bool {
        std::mem::take(&mut self.fired)
    }

    /// Whether both directions wait for room from now on: then it fires soon.
    pub(super) fn both_wait(&mut self, waits: bool) {
        if waits && !self.waits {
            self.waits = true;
            self.set(LOOK);
        }
        self.waits = waits;
    }

    /// Whether it is to fire once a second from now on, whatever moves.
    pub(super) fn look_often(&mut self, often: bool) {
        if often && !self.often {
            self.often = true;
            self.set(LOOK);
        }
        self.often = often;
    }

    /// Another path has the flow from now on: what waited for it to last is done.
    pub(super) fn watch_now(&mut self, legs: [&TcpStream; 2]) {
        if std::mem::take(&mut self.is_new) {
            vanished::watch(legs, self.timeouts.vanished);
            legs.into_iter().for_each(reset_on_close);
        }
    }

    /// Whether what waited for the flow to last is done.
    pub(super) fn has_lasted(&self) -> bool {
        !self.is_new
    }

    /// It fires each `look` as well from now on.
    pub(super) fn look_each(&mut self, look: Option<Duration>) {
        self.look = look;
        self.set(self.timeouts.idle);
    }

    /// One side has finished: from now on `timeouts.half_close` counts.
    pub(super) fn half_closed(&mut self) {
        self.half = true;
        self.look = None;
        self.set(self.timeouts.half_close);
    }

    /// Ready when nothing has moved for too long. `moved` says that bytes woke the task.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        moved: bool,
        legs: [&TcpStream; 2],
    ) -> Poll<CloseReason> {
        // Bytes woke this task; the timer, unless it fired at the same time, still has the waker.
        if moved && self.is_set && !self.timer.is_elapsed() {
            return Poll::Pending;
        }
        let (limit, reason) = if self.half {
            (self.timeouts.half_close, CloseReason::HalfCloseTimeout)
        } else {
            (self.timeouts.idle, CloseReason::Idle)
        };
        while self.timer.as_mut().poll(cx).is_ready() {
            self.fired = true;
            self.watch_now(legs);
            let silent =
                legs.iter().filter_map(|leg| sys::tcp_info(leg.as_fd()).ok()).map(|info| info.silent);
            let silent = silent.min().unwrap_or(Duration::MAX);
            if silent >= limit {
                return Poll::Ready(reason);
            }
            self.set(limit - silent);
        }
        self.is_set = true;
        Poll::Pending
    }
}

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

use crate::{close_reason::CloseReason, config::Timeouts, sys};

/// A flow's timer.
pub(super) struct Silence<'a> {
    timer: Pin<&'a mut Sleep>,
    is_set: bool,
    half: bool,
    fired: bool,
    timeouts: &'a Timeouts,
    look: Option<Duration>,
}

impl<'a> Silence<'a> {
    /// A timer for a flow of which no side has finished. It fires each `look` as well, if that is given.
    pub(super) fn new(timer: Pin<&'a mut Sleep>, timeouts: &'a Timeouts, look: Option<Duration>) -> Self {
        Self { timer, is_set: false, half: false, fired: false, timeouts, look }
    }

    /// Whether it has fired since this was asked last.
    pub(super) fn take_fired(&mut self) -> bool {
        std::mem::take(&mut self.fired)
    }

    /// One side has finished: from now on `timeouts.half_close` counts.
    pub(super) fn half_closed(&mut self) {
        self.half = true;
        self.timer.as_mut().reset(Instant::now() + self.timeouts.half_close);
        self.is_set = false;
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
        self.is_set = true;
        let (limit, reason) = if self.half {
            (self.timeouts.half_close, CloseReason::HalfCloseTimeout)
        } else {
            (self.timeouts.idle, CloseReason::Idle)
        };
        while self.timer.as_mut().poll(cx).is_ready() {
            self.fired = true;
            let silent =
                legs.iter().filter_map(|leg| sys::tcp_info(leg.as_fd()).ok()).map(|info| info.silent);
            let silent = silent.min().unwrap_or(Duration::MAX);
            if silent >= limit {
                return Poll::Ready(reason);
            }
            let rest = limit - silent;
            self.timer.as_mut().reset(Instant::now() + self.look.map_or(rest, |look| look.min(rest)));
        }
        Poll::Pending
    }
}

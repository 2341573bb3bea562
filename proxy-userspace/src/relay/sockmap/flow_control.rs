//! Userspace's part of the flow control: relays what the program passed because the destination could not take it.
//!
//! The program redirects again by itself once all that it passed has been relayed. Userspace never tells it to: that
//! would race with bytes that arrive. But a sender that is faster than its reader would always have the next bytes
//! ready, and the direction would never get back to the kernel. So userspace first only *peeks* at what was passed
//! and sends it on. As nothing is taken out, the sender's window closes, and all that was passed is soon relayed, if
//! it is no more than can be looked at together. Only then, and when the destination has room again, the bytes are
//! taken out of the queue; that opens the window, and what comes through it is redirected.

use std::{io, os::fd::BorrowedFd, sync::atomic::Ordering};

use proxy_common::credit::SHARE;

use crate::{
    close_reason::Side,
    sys::{self, BudgetRef, DirectionRef, TcpInfo},
};

/// The window that a leg may offer again after a pause, bytes: what the kernel allows at most by default.
const RESUMED_WINDOW: i32 = 32 << 20;
/// The window offered to a sender that is to pause, bytes.
const PAUSED_WINDOW: i32 = 1;

/// Bytes looked at together for a congested direction.
pub(super) const SCRATCH: usize = 256 * 1024;

/// Rounds of peeking and sending for one direction before another gets its turn.
const ROUNDS: u32 = 16;

/// Makes a leg's peer pause, so that its direction comes level although it has more to send than can be looked at.
pub(super) fn pause(leg: BorrowedFd<'_>) {
    let _ = sys::set_window_clamp(leg, PAUSED_WINDOW);
}

/// Undoes [`pause`].
pub(super) fn resume(leg: BorrowedFd<'_>) {
    let _ = sys::set_window_clamp(leg, RESUMED_WINDOW);
}

/// A direction that passes bytes to userspace. It exists only while that is so.
#[derive(Debug, Default)]
pub(super) struct Congestion {
    /// Bytes taken out of the source's queue that the destination did not take.
    pending: Vec<u8>,
    /// Bytes at the head of the source's queue that are relayed and not taken out yet.
    relayed_ahead: usize,
    /// What the program had redirected when all of it was found written to the destination.
    flushed_at: Option<u64>,
}

/// Why relaying stopped.
#[derive(Debug)]
pub(super) enum Outcome {
    /// All that was passed is relayed; the kernel has taken over.
    Level,
    /// More was passed than can be read yet.
    WaitRead,
    /// The destination has no room.
    WaitWrite,
    /// Bytes redirected earlier are not written yet, or the direction has used its share of the budget.
    WaitFlush,
    /// There is more to do, after others had their turn.
    Yield,
    /// A leg failed.
    Broken(Side, io::Error),
}

/// A direction with what is needed to relay it.
pub(super) struct Relay<'a> {
    /// The leg that the bytes come from.
    pub(super) from: Side,
    pub(super) source: BorrowedFd<'a>,
    pub(super) destination: BorrowedFd<'a>,
    /// Bytes that userspace wrote to the destination before insertion.
    pub(super) base_written: u64,
    pub(super) direction: DirectionRef<'a>,
    pub(super) budget: BudgetRef<'a>,
}

impl Relay<'_> {
    /// Moves what was passed, as far as it goes without waiting.
    pub(super) fn run(&self, congestion: &mut Congestion, scratch: &mut [u8]) -> Outcome {
        let reading = |error| Outcome::Broken(self.from, error);
        let writing = |error| Outcome::Broken(self.from.other(), error);
        for _ in 0..ROUNDS {
            if !congestion.pending.is_empty() || self.is_bulk(congestion, scratch.len()) {
                if let Some(outcome) = self.take_and_send(congestion, scratch) {
                    return outcome;
                }
                continue;
            }
            let ahead = congestion.relayed_ahead;
            if ahead == scratch.len() {
                // More was passed than can be looked at together.
                if let Err(error) = self.take_out(congestion, scratch) {
                    return reading(error);
                }
                continue;
            }
            let seen = match sys::peek(self.source, scratch) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return reading(error),
            };
            if seen <= ahead {
                return self.level(congestion, scratch).unwrap_or_else(reading);
            }
            match self.may_send(&mut congestion.flushed_at) {
                Ok(true) => {}
                Ok(false) => return Outcome::WaitFlush,
                Err(error) => return writing(error),
            }
            match sys::send(self.destination, &scratch[ahead..seen]) {
                Ok(count) => {
                    congestion.relayed_ahead += count;
                    self.direction.add_relayed(count as u64);
                    if congestion.relayed_ahead < seen {
                        return Outcome::WaitWrite;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Outcome::WaitWrite,
                Err(error) => return writing(error),
            }
        }
        Outcome::Yield
    }

    /// Whether more was passed than can be looked at together, so that looking would be a copy for nothing.
    fn is_bulk(&self, congestion: &Congestion, look: usize) -> bool {
        congestion.relayed_ahead == 0 && self.direction.passed() - self.direction.relayed() > look as u64
    }

    /// Sends what is pending, or takes bytes out and sends those. `None` means that there may be more.
    fn take_and_send(&self, congestion: &mut Congestion, scratch: &mut [u8]) -> Option<Outcome> {
        match self.may_send(&mut congestion.flushed_at) {
            Ok(true) => {}
            Ok(false) => return Some(Outcome::WaitFlush),
            Err(error) => return Some(Outcome::Broken(self.from.other(), error)),
        }
        let fresh = if congestion.pending.is_empty() {
            match sys::receive(self.source, scratch) {
                Ok(0) => return Some(Outcome::WaitRead),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(Outcome::WaitRead),
                Err(error) => return Some(Outcome::Broken(self.from, error)),
            }
        } else {
            0
        };
        let bytes = if fresh > 0 { &scratch[..fresh] } else { &congestion.pending };
        let count = match sys::send(self.destination, bytes) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Some(Outcome::Broken(self.from.other(), error)),
        };
        self.direction.add_relayed(count as u64);
        if fresh > 0 {
            congestion.pending.extend_from_slice(&scratch[count..fresh]);
        } else {
            congestion.pending.drain(..count);
        }
        (!congestion.pending.is_empty()).then_some(Outcome::WaitWrite)
    }

    /// All that can be seen is relayed. Gives the direction back to the kernel if that is all that was passed.
    fn level(&self, congestion: &mut Congestion, scratch: &mut [u8]) -> io::Result<Outcome> {
        if self.direction.passed() != self.direction.relayed() {
            return Ok(Outcome::WaitRead);
        }
        // With the destination still full the next segment would be passed again. epoll tells when a third of its
        // send buffer is free (`sk_stream_is_writeable`, include/net/sock.h).
        if !sys::is_writable(self.destination)? {
            return Ok(Outcome::WaitWrite);
        }
        self.take_out(congestion, scratch)?;
        Ok(Outcome::Level)
    }

    /// Takes what was relayed out of the source's queue, which opens the sender's window.
    pub(super) fn take_out(&self, congestion: &mut Congestion, scratch: &mut [u8]) -> io::Result<()> {
        while congestion.relayed_ahead > 0 {
            let len = congestion.relayed_ahead.min(scratch.len());
            let count = sys::receive(self.source, &mut scratch[..len])?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            congestion.relayed_ahead -= count;
        }
        Ok(())
    }

    /// Whether the destination has all that came before, and the budget has room for more.
    fn may_send(&self, flushed_at: &mut Option<u64>) -> io::Result<bool> {
        let info = sys::tcp_info(self.destination)?;
        if info.closed {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let redirected = self.direction.redirected();
        if *flushed_at != Some(redirected) {
            if info.written < self.base_written + redirected + self.direction.relayed() {
                return Ok(false);
            }
            *flushed_at = Some(redirected);
        }
        let outstanding = reserve(self.direction, self.budget, self.base_written, &info);
        let others = self.budget.reserved().load(Ordering::Relaxed).saturating_sub(outstanding);
        let free = self.budget.total().load(Ordering::Relaxed).saturating_sub(others);
        Ok(outstanding == 0 || outstanding < free / SHARE)
    }
}

/// Makes a direction hold of the budget what its destination has not acknowledged, and returns that.
pub(super) fn reserve(direction: DirectionRef<'_>, budget: BudgetRef<'_>, base: u64, info: &TcpInfo) -> u64 {
    let acked = info.acked.saturating_sub(base);
    let outstanding = direction.window().outstanding(direction.relayed(), acked);
    hold(direction, budget, outstanding);
    outstanding
}

/// Makes a direction hold this much of the budget.
pub(super) fn hold(direction: DirectionRef<'_>, budget: BudgetRef<'_>, bytes: u64) {
    let before = direction.reserved().swap(bytes, Ordering::AcqRel);
    budget.reserved().fetch_add(bytes.wrapping_sub(before), Ordering::AcqRel);
}

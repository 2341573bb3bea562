//! Userspace's part of the flow control: relays what the program passed because the destination could not take it.
//!
//! The program redirects again by itself once all that it passed has been relayed. Userspace never tells it to: that
//! would race with bytes that arrive.

use std::{io, os::fd::BorrowedFd, sync::atomic::Ordering};

use proxy_common::credit::SHARE;

use crate::{
    close_reason::Side,
    sys::{self, BudgetRef, DirectionRef, TcpInfo},
};

/// Rounds of reading and writing for one direction before another gets its turn.
const ROUNDS: u32 = 16;

/// A direction that passes bytes to userspace. It exists only while that is so.
#[derive(Debug, Default)]
pub(super) struct Congestion {
    /// Bytes read and not yet taken by the destination.
    pending: Vec<u8>,
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
    /// The destination takes no more.
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
        for _ in 0..ROUNDS {
            let mut fresh = 0;
            if congestion.pending.is_empty() {
                fresh = match sys::receive(self.source, scratch) {
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                    Err(error) => return Outcome::Broken(self.from, error),
                };
                if fresh == 0 {
                    let level = self.direction.passed() == self.direction.relayed();
                    return if level { Outcome::Level } else { Outcome::WaitRead };
                }
            }
            let may_send = match self.may_send(&mut congestion.flushed_at) {
                Ok(may_send) => may_send,
                Err(error) => return Outcome::Broken(self.from.other(), error),
            };
            let bytes: &[u8] = if fresh > 0 {
                &scratch[..fresh]
            } else {
                &congestion.pending
            };
            let count = match may_send.then(|| sys::send(self.destination, bytes)) {
                Some(Ok(count)) => count,
                Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Outcome::Broken(self.from.other(), error);
                }
                Some(Err(_)) | None => 0,
            };
            if fresh > 0 {
                congestion.pending.extend_from_slice(&scratch[count..fresh]);
            } else {
                congestion.pending.drain(..count);
            }
            self.direction.add_relayed(count as u64);
            if !may_send {
                return Outcome::WaitFlush;
            }
            if !congestion.pending.is_empty() {
                return Outcome::WaitWrite;
            }
        }
        Outcome::Yield
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
        let others = self
            .budget
            .reserved()
            .load(Ordering::Relaxed)
            .saturating_sub(outstanding);
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
    budget
        .reserved()
        .fetch_add(bytes.wrapping_sub(before), Ordering::AcqRel);
}

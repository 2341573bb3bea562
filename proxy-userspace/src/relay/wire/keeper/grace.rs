//! Grace periods: after one, no program runs that looked at the maps before it began.
//!
//! The program and TCP's own reception run in one RCU read-side section (`netif_receive_skb_internal`, net/core/dev.c). So
//! after a grace period every packet that the program did not count has reached its socket, and none is translated by
//! numbers that were there before. One takes 14 to 20 ms on a quiet machine and blocks, so that a thread waits for it, and one
//! is enough for all flows that were installed before it began.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use crate::sys::{self, EventFd};

/// Where the kernel refuses to wait for one (`nohz_full`), what is as good: no packet is on its way for so long.
const INSTEAD: Duration = Duration::from_millis(200);

/// A grace period that is over or will be: the number of it, counted from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Number(u64);

#[cfg(test)]
impl Number {
    pub(super) fn test(number: u64) -> Self {
        Self(number)
    }
}

/// The thread that waits.
pub(super) struct Grace {
    state: Arc<State>,
    thread: thread::JoinHandle<()>,
}

struct State {
    /// Periods that have begun, and that are over.
    begun: AtomicU64,
    over: AtomicU64,
    /// The last that somebody waits for.
    wanted: AtomicU64,
    /// The keeper is gone.
    ends: AtomicBool,
    /// Readable when one is over.
    told: EventFd,
}

impl Grace {
    /// # Errors
    /// Out of descriptors or threads.
    pub(super) fn start() -> io::Result<Self> {
        let state = Arc::new(State {
            begun: AtomicU64::new(0),
            over: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            ends: AtomicBool::new(false),
            told: EventFd::new()?,
        });
        let waits = state.clone();
        let thread = thread::Builder::new().name("setu-grace".into()).spawn(move || waits.run())?;
        Ok(Self { state, thread })
    }

    /// One that begins after everything that was done before this call.
    pub(super) fn next(&self) -> Number {
        let number = self.state.begun.load(Ordering::SeqCst) + 1;
        if self.state.wanted.fetch_max(number, Ordering::SeqCst) < number {
            self.thread.thread().unpark();
        }
        Number(number)
    }

    /// Whether it is over.
    pub(super) fn is_over(&self, number: Number) -> bool {
        self.state.over.load(Ordering::SeqCst) >= number.0
    }
}

impl AsFd for Grace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.state.told.as_fd()
    }
}

impl Drop for Grace {
    fn drop(&mut self) {
        self.state.ends.store(true, Ordering::SeqCst);
        self.thread.thread().unpark();
    }
}

impl State {
    fn run(&self) {
        while !self.ends.load(Ordering::SeqCst) {
            if self.wanted.load(Ordering::SeqCst) <= self.over.load(Ordering::SeqCst) {
                thread::park();
                continue;
            }
            let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            if sys::membarrier().is_err() {
                thread::sleep(INSTEAD);
            }
            self.over.store(number, Ordering::SeqCst);
            self.told.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn one_that_was_asked_for_comes_to_its_end() {
        let grace = Grace::start().unwrap();
        let first = grace.next();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !grace.is_over(first) {
            assert!(Instant::now() < deadline);
            thread::sleep(Duration::from_millis(1));
        }
        let second = grace.next();
        assert!(second > first && !grace.is_over(Number(second.0 + 1)));
    }
}

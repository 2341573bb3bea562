//! The process's pipes, through which bulk goes by splice(2).
//!
//! A pipe takes two descriptors that clients might need, and memory that the kernel gives a user only so much of. So the
//! process has a bound of pipes, which the reckoning of connections sets aside (`serve/capacity.rs`). A direction that gets none
//! copies.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU32, Ordering},
};

use crate::sys;

/// Bytes that a pipe holds at least.
pub(super) const CAPACITY: usize = 64 * 1024;
/// Empty pipes that are kept for the next bulk.
const KEPT: usize = 64;

static PIPES: Pool = Pool::new();

/// Lets the process have so many pipes; before that it has none.
pub(crate) fn allow(count: u32) {
    PIPES.allow(count);
}

/// An empty pipe, unless there are too many, or the machine has no room for one.
pub(super) fn take() -> Option<Pipe> {
    PIPES.take()
}

#[derive(Debug)]
struct Pool {
    bound: AtomicU32,
    /// Those that are kept count.
    count: AtomicU32,
    kept: Mutex<Vec<Pipe>>,
}

/// A pipe, counted.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) ends: sys::Pipe,
    place: Place,
}

/// One of as many as there may be.
#[derive(Debug)]
struct Place(&'static Pool);

impl Pool {
    const fn new() -> Self {
        Self { bound: AtomicU32::new(0), count: AtomicU32::new(0), kept: Mutex::new(Vec::new()) }
    }

    fn allow(&self, count: u32) {
        self.bound.store(count, Ordering::Relaxed);
    }

    fn take(&'static self) -> Option<Pipe> {
        let kept = self.kept().pop();
        kept.or_else(|| {
            let add = |count| (count < self.bound.load(Ordering::Relaxed)).then_some(count + 1);
            self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
            let place = Place(self);
            Some(Pipe { ends: sys::Pipe::new(CAPACITY).ok()?, place })
        })
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Pipe>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pipe {
    /// Keeps it, empty, for the next.
    pub(super) fn put_back(self) {
        let mut kept = self.place.0.kept();
        if kept.len() < KEPT {
            kept.push(self);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_than_allowed() {
        static PIPES: Pool = Pool::new();
        let take = || PIPES.take();
        assert!(take().is_none());
        PIPES.allow(2);
        let (first, second) = (take().unwrap(), take().unwrap());
        assert!(take().is_none());
        drop(first);
        let third = take().unwrap();
        assert!(take().is_none());
        second.put_back();
        assert_eq!(PIPES.count.load(Ordering::Relaxed), 2, "one that is kept counts");
        let fourth = take().unwrap();
        assert!(take().is_none());
        drop((third, fourth));
        assert_eq!(PIPES.count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_pipe_that_is_too_small_is_none() {
        assert!(sys::Pipe::new(CAPACITY).is_ok());
        // As where the kernel gives less: a pipe's default is its capacity here.
        assert!(sys::Pipe::new(CAPACITY + 1).is_err());
    }
}

//! What is counted while connections come and go, for the status page and for Prometheus.
//!
//! Counting must cost next to nothing where connections are accepted and bytes are moved, so everything here is a plain
//! atomic number that is reached without a lookup: what is made of the numbers is the affair of whoever asks (`admin`).
//! Labels are what the configuration and the code name, never what a peer sent.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use super::{CloseReason, Path, Purpose, Side};

/// A flow in userspace adds what it moved to the sum when it is over, and each time that so many bytes came together:
/// the sum is of all workers, and touching it for each message would cost more than the message.
const BYTES_TOGETHER: u64 = 1 << 20;

/// Everything that is counted.
#[derive(Debug)]
pub struct Counters {
    closed: [AtomicU64; CloseReason::ALL.len()],
    /// Grows only: a listener that a new configuration leaves out may come back, and counters never go down.
    listeners: Mutex<Vec<Arc<ListenerCounts>>>,
    handed_on: AtomicU64,
    bytes: [AtomicU64; 2],
    draining: AtomicBool,
    stopping: AtomicBool,
}

/// What is counted for one listener.
#[derive(Debug)]
pub struct ListenerCounts {
    /// Its name in the configuration.
    pub name: String,
    accepted: AtomicU64,
    /// By senders that are trusted to tell whose connection it is, and by others: one of either per connection.
    vouched: AtomicU64,
    strangers: AtomicU64,
    active: [AtomicU64; Path::ALL.len()],
    useful: [AtomicU64; Purpose::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            closed: [const { AtomicU64::new(0) }; CloseReason::ALL.len()],
            listeners: Mutex::default(),
            handed_on: AtomicU64::new(0),
            bytes: Default::default(),
            draining: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        }
    }
}

impl Counters {
    /// Connections that ended for this reason.
    #[must_use]
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closed[reason as usize].load(Ordering::Relaxed)
    }

    /// A connection ended.
    pub(crate) fn count_closed(&self, reason: CloseReason) {
        self.closed[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Connections that are a successor's now.
    pub(crate) fn handed_on(&self) -> u64 {
        self.handed_on.load(Ordering::Relaxed)
    }

    /// A connection is a successor's.
    pub(crate) fn count_handed_on(&self) {
        self.handed_on.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts of a listener; they begin at 0 when it is asked for first.
    pub fn listener(&self, name: &str) -> Arc<ListenerCounts> {
        let mut all = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.iter().find(|listener| listener.name == name) {
            return known.clone();
        }
        let new = ListenerCounts {
            name: name.into(),
            accepted: 0.into(),
            vouched: 0.into(),
            strangers: 0.into(),
            active: Default::default(),
            useful: Default::default(),
        };
        let new = Arc::new(new);
        all.push(new.clone());
        new
    }

    /// The counts of all listeners that there ever were.
    #[must_use]
    pub fn listeners(&self) -> Vec<Arc<ListenerCounts>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes that came from this side and were handed to the other.
    pub(crate) fn bytes(&self, from: Side) -> u64 {
        self.bytes[from.index()].load(Ordering::Relaxed)
    }

    /// Bytes from this side were handed to the other.
    pub(crate) fn count_bytes(&self, from: Side, bytes: u64) {
        if bytes > 0 {
            self.bytes[from.index()].fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// For the bytes of one direction of a flow in userspace.
    pub(crate) fn meter(&self, from: Side) -> Meter<'_> {
        Meter { sum: &self.bytes[from.index()], pending: 0 }
    }

    /// From now on new clients are to go elsewhere, and connections to end.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether setu was told to stop.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// From now on a connection that is dropped ends because setu stops.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether connections that are dropped end because setu stops.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

impl ListenerCounts {
    /// Connections accepted.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Connections by senders of PROXY headers who are trusted.
    #[must_use]
    pub fn vouched(&self) -> u64 {
        self.vouched.load(Ordering::Relaxed)
    }

    /// Connections that were refused because their sender is not trusted.
    #[must_use]
    pub fn strangers(&self) -> u64 {
        self.strangers.load(Ordering::Relaxed)
    }

    /// A connection came where PROXY headers are taken, by a sender who is trusted or not.
    pub(crate) fn came(&self, trusted: bool) {
        let count = if trusted { &self.vouched } else { &self.strangers };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Open connections whose bytes move so.
    #[must_use]
    pub fn active(&self, path: Path) -> u64 {
        self.active[path as usize].load(Ordering::Relaxed)
    }

    /// Flows that were useful, by what for.
    #[must_use]
    pub fn useful(&self, purpose: Purpose) -> u64 {
        self.useful[purpose as usize].load(Ordering::Relaxed)
    }

    /// A flow has become useful.
    pub(crate) fn count_useful(&self, purpose: Purpose) {
        self.useful[purpose as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A connection was accepted.
    pub(crate) fn enter(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        self.go_on();
    }

    /// A connection is here that another setu accepted.
    pub(crate) fn go_on(&self) {
        self.active[Path::None as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The bytes of a connection move by another path.
    pub(crate) fn change(&self, from: Path, to: Path) {
        if from != to {
            self.active[to as usize].fetch_add(1, Ordering::Relaxed);
            self.leave(from);
        }
    }

    /// A connection ended.
    pub(crate) fn leave(&self, path: Path) {
        self.active[path as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts the bytes of one direction of a flow.
#[derive(Debug)]
pub(crate) struct Meter<'a> {
    sum: &'a AtomicU64,
    pending: u64,
}

impl Meter<'_> {
    /// So many bytes were handed to their destination.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.pending += bytes as u64;
        if self.pending >= BYTES_TOGETHER {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.sum.fetch_add(std::mem::take(&mut self.pending), Ordering::Relaxed);
    }
}

impl Drop for Meter<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listeners_counts_outlive_its_absence() {
        let counters = Counters::default();
        let chat = counters.listener("chat");
        chat.enter();
        chat.change(Path::None, Path::Sockmap);
        assert_eq!((chat.active(Path::None), chat.active(Path::Sockmap)), (0, 1));
        chat.change(Path::Sockmap, Path::Sockmap);
        chat.leave(Path::Sockmap);
        drop(chat);
        assert_eq!(counters.listener("chat").accepted(), 1);
        assert_eq!(counters.listener("chat").active(Path::Sockmap), 0);
        assert_eq!(counters.listeners().len(), 1);
    }

    #[test]
    fn a_meter_loses_nothing() {
        let counters = Counters::default();
        let mut meter = counters.meter(Side::Client);
        meter.add(7);
        assert_eq!(counters.bytes(Side::Client), 0);
        meter.add(BYTES_TOGETHER as usize);
        assert_eq!(counters.bytes(Side::Client), BYTES_TOGETHER + 7);
        meter.add(1);
        drop(meter);
        counters.count_bytes(Side::Client, 2);
        assert_eq!(counters.bytes(Side::Client), BYTES_TOGETHER + 10);
        assert_eq!(counters.bytes(Side::Upstream), 0);
    }
}

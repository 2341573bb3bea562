//! What became of flows that were to go on the wire.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::watch;

use super::message::WireRefusal;

/// What the keeper was told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// To end, and every flow on the wire with it.
    Stop,
    /// To leave what is on the wire to a successor's.
    Yield,
}

/// Counts since start, and what is on the wire now.
#[derive(Debug)]
pub(crate) struct Counts {
    flows: AtomicU64,
    handed_over: AtomicU64,
    busy: AtomicU64,
    torn: AtomicU64,
    refused: [AtomicU64; WireRefusal::ALL.len()],
    farewell: watch::Sender<Option<Farewell>>,
    gone: AtomicBool,
    waits: AtomicBool,
}

impl Default for Counts {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            flows: zero(),
            handed_over: zero(),
            busy: zero(),
            torn: zero(),
            refused: [const { AtomicU64::new(0) }; WireRefusal::ALL.len()],
            farewell: watch::Sender::new(None),
            gone: AtomicBool::new(false),
            waits: AtomicBool::new(false),
        }
    }
}

impl Counts {
    pub(super) fn refuse(&self, refusal: WireRefusal) {
        self.refused[refusal as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn hand_over(&self) {
        self.handed_over.fetch_add(1, Ordering::Relaxed);
        self.flows.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn adopt(&self) {
        self.flows.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.flows.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn be_busy(&self) {
        self.busy.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn tear(&self) {
        self.torn.fetch_add(1, Ordering::Relaxed);
    }

    /// The keeper is told to end.
    pub(crate) fn part(&self, farewell: Farewell) {
        self.farewell.send_replace(Some(farewell));
    }

    /// Whether the keeper was told to end, and how.
    pub(super) fn farewell(&self) -> Option<Farewell> {
        *self.farewell.borrow()
    }

    /// Waits until the keeper was told to end.
    pub(super) async fn parted(&self) -> Option<Farewell> {
        self.farewell.subscribe().wait_for(Option::is_some).await.ok().and_then(|farewell| *farewell)
    }

    /// The keeper has ended, and was not told to. Returns whether that was known.
    pub(super) fn lose_keeper(&self) -> bool {
        self.gone.swap(true, Ordering::Relaxed)
    }

    /// Whether the keeper has ended, and was not told to.
    pub(crate) fn has_no_keeper(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    pub(super) fn wait_for_another(&self, waits: bool) {
        self.waits.store(waits, Ordering::Relaxed);
    }

    /// Whether another keeper has the connections that this one is to have.
    pub(crate) fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// Flows on the wire.
    pub(crate) fn flows(&self) -> u64 {
        self.flows.load(Ordering::Relaxed)
    }

    /// Flows that went on it.
    pub(crate) fn handed_over(&self) -> u64 {
        self.handed_over.load(Ordering::Relaxed)
    }

    /// How often it was tried and could not be in that moment.
    pub(crate) fn busy(&self) -> u64 {
        self.busy.load(Ordering::Relaxed)
    }

    /// Flows that were reset because it could not be shown that every byte had arrived.
    pub(crate) fn torn(&self) -> u64 {
        self.torn.load(Ordering::Relaxed)
    }

    /// Flows that did not go on it, for this reason.
    pub(crate) fn refused(&self, refusal: WireRefusal) -> u64 {
        self.refused[refusal as usize].load(Ordering::Relaxed)
    }
}

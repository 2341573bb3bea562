//! What became of flows that were to go on the wire.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::message::WireRefusal;

/// Counts since start, and what is on the wire now.
#[derive(Debug)]
pub(crate) struct Counts {
    flows: AtomicU64,
    handed_over: AtomicU64,
    busy: AtomicU64,
    torn: AtomicU64,
    refused: [AtomicU64; WireRefusal::ALL.len()],
    handed_on: AtomicBool,
    gone: AtomicBool,
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
            handed_on: AtomicBool::new(false),
            gone: AtomicBool::new(false),
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

    /// The keeper is told to end, by setu's stop or for a successor.
    pub(crate) fn hand_on(&self) {
        self.handed_on.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_handed_on(&self) -> bool {
        self.handed_on.load(Ordering::SeqCst)
    }

    /// The keeper has ended, and was not told to. Returns whether that was known.
    pub(super) fn lose_keeper(&self) -> bool {
        self.gone.swap(true, Ordering::Relaxed)
    }

    /// Whether the keeper has ended, and was not told to.
    pub(crate) fn has_no_keeper(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
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

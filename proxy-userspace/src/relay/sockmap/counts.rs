//! What the kernel path did with flows: which it did not take, and which changed between paths.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::relay::reason::Refusal;

/// Counts since start, and what is in the kernel now.
#[derive(Debug)]
pub(crate) struct Counts {
    refused: [AtomicU64; Refusal::ALL.len()],
    congested: AtomicU64,
    streams: AtomicU64,
    resumed: AtomicU64,
    flows: AtomicU64,
    reserved: AtomicU64,
}

impl Default for Counts {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            refused: Refusal::ALL.map(|_| zero()),
            congested: zero(),
            streams: zero(),
            resumed: zero(),
            flows: zero(),
            reserved: zero(),
        }
    }
}

impl Counts {
    pub(super) fn refuse(&self, refusal: Refusal) {
        self.refused[refusal as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn congest(&self) {
        self.congested.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn stream(&self) {
        self.streams.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn resume(&self) {
        self.resumed.fetch_add(1, Ordering::Relaxed);
    }

    /// What the kernel has now: flows, and bytes that these may have on their way.
    pub(super) fn hold(&self, flows: u64, reserved: u64) {
        self.flows.store(flows, Ordering::Relaxed);
        self.reserved.store(reserved, Ordering::Relaxed);
    }

    /// Flows in the kernel.
    pub(crate) fn flows(&self) -> u64 {
        self.flows.load(Ordering::Relaxed)
    }

    /// Bytes that these may have on their way.
    pub(crate) fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed)
    }

    /// Flows that the kernel did not take, for this reason.
    pub(crate) fn refused(&self, refusal: Refusal) -> u64 {
        self.refused[refusal as usize].load(Ordering::Relaxed)
    }

    /// How often a flow left the kernel because a leg could not keep up.
    pub(crate) fn congested(&self) -> u64 {
        self.congested.load(Ordering::Relaxed)
    }

    /// How often a flow left the kernel because it moved more than messages.
    pub(crate) fn streams(&self) -> u64 {
        self.streams.load(Ordering::Relaxed)
    }

    /// How often a flow that had left for one of these came back.
    pub(crate) fn resumed(&self) -> u64 {
        self.resumed.load(Ordering::Relaxed)
    }
}

//! The last hour, a sample each minute, for the charts. It lives in memory and goes with the process.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

/// Between samples.
pub(super) const INTERVAL: Duration = Duration::from_secs(60);
/// Samples that are kept.
pub(super) const SAMPLES: usize = 60;

/// One minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// When it ended, seconds since 1970.
    pub at: u64,
    /// Connections open then.
    pub connections: u64,
    /// Connections accepted in it.
    pub accepted: u64,
    /// Bytes handed to WhatsApp in it.
    pub to_upstream: u64,
    /// Bytes handed to clients in it.
    pub to_client: u64,
}

/// The samples, oldest first, and what was counted until the last.
#[derive(Debug, Default)]
pub(super) struct History {
    samples: VecDeque<Sample>,
    totals: Totals,
}

/// What was counted since the start.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Totals {
    pub(super) accepted: u64,
    pub(super) to_upstream: u64,
    pub(super) to_client: u64,
}

impl History {
    /// Adds the minute that ends now.
    pub(super) fn push(&mut self, at: u64, connections: u64, totals: Totals) {
        let before = std::mem::replace(&mut self.totals, totals);
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample {
            at,
            connections,
            accepted: totals.accepted.saturating_sub(before.accepted),
            to_upstream: totals.to_upstream.saturating_sub(before.to_upstream),
            to_client: totals.to_client.saturating_sub(before.to_client),
        });
    }

    /// Oldest first.
    pub(super) fn samples(&self) -> Vec<Sample> {
        self.samples.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_kept_and_each_minute_has_its_own_counts() {
        let mut history = History::default();
        for minute in 1..=90 {
            let totals = Totals { accepted: minute * minute, to_upstream: minute * 10, to_client: 0 };
            history.push(minute * 60, minute, totals);
        }
        let samples = history.samples();
        assert_eq!(samples.len(), SAMPLES);
        let first = Sample { at: 31 * 60, connections: 31, accepted: 61, to_upstream: 10, to_client: 0 };
        assert_eq!(samples[0], first);
        assert_eq!(samples[59].at, 90 * 60);
    }
}

//! Counts of the last hour, day and week, for the charts, and what was moved this month. It lives in memory and goes with the
//! process, and there is nothing in it but counts.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use crate::operator::text::month;

/// Between samples of the last hour.
pub(super) const INTERVAL: Duration = Duration::from_secs(60);

/// A stretch of the past that is kept, oldest samples first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// A sample each minute.
    Hour,
    /// Each quarter of an hour.
    Day,
    /// Each two hours.
    Week,
}

/// What happened in some minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// When they ended, seconds since 1970.
    pub at: u64,
    /// Connections open then.
    pub connections: u64,
    /// What was counted in them.
    #[serde(flatten)]
    pub counts: Counts,
}

/// What is counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Connections accepted.
    pub accepted: u64,
    /// Chats that were of use.
    pub useful_chat: u64,
    /// Connections for media that were.
    pub useful_media: u64,
    /// Clients that were not served by a fault of WhatsApp's servers, the network or this machine.
    pub failed: u64,
    /// Clients that a limit refused or ended.
    pub refused: u64,
    /// Bytes handed to WhatsApp.
    pub to_upstream: u64,
    /// Bytes handed to clients.
    pub to_client: u64,
}

/// What was moved in the current month, by the calendar of UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Month {
    /// From when on it is counted, seconds since 1970: the first minute of the month, or the start of setu if that was later.
    pub since: u64,
    /// Bytes handed to WhatsApp.
    pub to_upstream: u64,
    /// Bytes handed to clients.
    pub to_client: u64,
}

impl Span {
    /// Every one, the shortest first.
    pub const ALL: [Self; 3] = [Self::Hour, Self::Day, Self::Week];

    /// Minutes in a sample.
    #[must_use]
    pub const fn minutes(self) -> u64 {
        match self {
            Self::Hour => 1,
            Self::Day => 15,
            Self::Week => 120,
        }
    }

    /// Samples that are kept.
    #[must_use]
    pub const fn samples(self) -> usize {
        let minutes = match self {
            Self::Hour => 60,
            Self::Day => 24 * 60,
            Self::Week => 7 * 24 * 60,
        };
        minutes / self.minutes() as usize
    }
}

impl Counts {
    fn since(self, before: Self) -> Self {
        self.with(before, u64::saturating_sub)
    }

    /// Both together.
    pub(super) fn and(self, other: Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    fn with(self, other: Self, both: fn(u64, u64) -> u64) -> Self {
        Self {
            accepted: both(self.accepted, other.accepted),
            useful_chat: both(self.useful_chat, other.useful_chat),
            useful_media: both(self.useful_media, other.useful_media),
            failed: both(self.failed, other.failed),
            refused: both(self.refused, other.refused),
            to_upstream: both(self.to_upstream, other.to_upstream),
            to_client: both(self.to_client, other.to_client),
        }
    }
}

/// What is kept, and what was counted until the last minute.
#[derive(Debug)]
pub(super) struct History {
    spans: [Kept; Span::ALL.len()],
    totals: Counts,
    /// When the month began, and what had been counted until then.
    month: (u64, Counts),
}

/// The samples of a span.
#[derive(Debug, Default)]
struct Kept {
    samples: VecDeque<Sample>,
    /// Of the sample that is not over yet.
    part: Counts,
    minutes: u64,
}

impl History {
    /// It begins at this moment, seconds since 1970.
    pub(super) fn new(at: u64) -> Self {
        Self { spans: Default::default(), totals: Counts::default(), month: (at, Counts::default()) }
    }

    /// Adds the minute that ends now, with what was counted since the start.
    pub(super) fn push(&mut self, at: u64, connections: u64, totals: Counts) {
        let counts = totals.since(std::mem::replace(&mut self.totals, totals));
        for span in Span::ALL {
            self.spans[span as usize].push(span, Sample { at, connections, counts });
        }
        if month(at) != month(self.month.0) {
            self.month = (at, totals);
        }
    }

    /// Oldest first.
    pub(super) fn samples(&self, span: Span) -> Vec<Sample> {
        self.spans[span as usize].samples.iter().copied().collect()
    }

    /// What was moved this month, of what was moved since the start.
    pub(super) fn month(&self, to_upstream: u64, to_client: u64) -> Month {
        let (since, before) = self.month;
        let moved = Counts { to_upstream, to_client, ..Counts::default() }.since(before);
        Month { since, to_upstream: moved.to_upstream, to_client: moved.to_client }
    }
}

impl Kept {
    fn push(&mut self, span: Span, minute: Sample) {
        self.part = self.part.and(minute.counts);
        self.minutes += 1;
        if self.minutes < span.minutes() {
            return;
        }
        if self.samples.len() == span.samples() {
            self.samples.pop_front();
        }
        self.minutes = 0;
        self.samples.push_back(Sample { counts: std::mem::take(&mut self.part), ..minute });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_span_is_kept_whole_and_no_longer() {
        let mut history = History::new(0);
        let minutes = 8 * 24 * 60;
        for minute in 1..=minutes {
            let totals = Counts { accepted: minute * minute, to_upstream: minute * 10, ..Counts::default() };
            history.push(minute * 60, minute, totals);
        }
        for (span, seconds) in [(Span::Hour, 3_600), (Span::Day, 86_400), (Span::Week, 7 * 86_400)] {
            let samples = history.samples(span);
            assert_eq!(samples.len(), span.samples(), "{span:?}");
            assert_eq!(samples.len() as u64 * span.minutes() * 60, seconds, "{span:?}");
            let last = samples[samples.len() - 1];
            assert_eq!((last.at, last.connections), (minutes * 60, minutes), "{span:?}");
            let sum: u64 = samples.iter().map(|sample| sample.counts.to_upstream).sum();
            assert_eq!(sum, seconds / 60 * 10, "{span:?}: each minute is counted once");
        }
        let counts = Counts { accepted: 2 * minutes - 1, to_upstream: 10, ..Counts::default() };
        assert_eq!(history.samples(Span::Hour)[59].counts, counts);
    }

    #[test]
    fn a_month_begins_on_the_first() {
        // 2026-11-30T23:58:00Z.
        let begin = 1_796_083_080;
        let mut history = History::new(begin);
        let moved = |bytes| Counts { to_upstream: bytes, to_client: 2 * bytes, ..Counts::default() };
        history.push(begin + 60, 1, moved(100));
        assert_eq!(history.month(150, 300), Month { since: begin, to_upstream: 150, to_client: 300 });
        history.push(begin + 120, 1, moved(200));
        assert_eq!(history.month(250, 500), Month { since: begin + 120, to_upstream: 50, to_client: 100 });
        history.push(begin + 180, 1, moved(300));
        assert_eq!(history.month(350, 700), Month { since: begin + 120, to_upstream: 150, to_client: 300 });
    }

    #[test]
    fn a_sample_of_before_is_read() {
        let text = r#"{"at":60,"connections":3,"accepted":2,"to_upstream":5,"to_client":7}"#;
        let counts = Counts { accepted: 2, to_upstream: 5, to_client: 7, ..Counts::default() };
        assert_eq!(serde_json::from_str::<Sample>(text).unwrap(), Sample { at: 60, connections: 3, counts });
    }
}
